"""Whether what a run writes can fit, before it begins.

Outputs are compressed, by how much nobody knows before: an empty map shrinks to a thousandth. A run is
refused only where its outputs cannot fit at all: uncompressed ones at their size, DEFLATE's at the 1032nd
part, the most that it can do. Where what is usual does not fit there is a warning; a disk that fills up ends
a run, and --resume goes on.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path

from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline.job import Job

OVERVIEWS = 4 / 3  # of the full resolution, with all its overviews
MOST = {"NONE": 1.0, "DEFLATE": 1032.0}  # by how much it may shrink (https://zlib.net/zlib_tech.html)
# Bytes a pixel and band that land cover of drawn and real scenes takes, compressed.
USUAL = {"labels": 0.06, "confidence": 0.6, "probabilities": 0.35, "heatmaps": 0.6, "uncertainty": 0.3}
USUAL_VECTOR = 0.1  # a pixel
_log = logging.getLogger("rsseg_cli")


def check_space(job: Job, *, coarse: bool = False) -> None:
    """Compare what is needed with what is free, on every disk that is written to.

    Args:
        coarse: the map is kept before it is refined, too.

    Raises:
        OutputError: the least that the outputs take is more than what is free.
    """
    least: defaultdict[Path, float] = defaultdict(float)
    usual: defaultdict[Path, float] = defaultdict(float)
    pixels = job.grid.width * job.grid.height
    options = {key.upper(): value.upper() for key, value in job.config.creation_options.items()}
    shrunk = MOST.get(options.get("COMPRESS", "DEFLATE"), math.inf)
    work = job.paths["labels"].parent
    for kind, part in job.layers.items():
        full = pixels * (part.stop - part.start) * OVERVIEWS
        least[job.paths[kind].parent] += full / shrunk
        usual[job.paths[kind].parent] += full * (USUAL[kind] if shrunk > 1 else 1)
        usual[work] += full * USUAL[kind] * (2 if coarse and kind != "uncertainty" else 1)
    if "vector" in job.paths:
        given_away = (job.vector.min_area_m2 > 0) + (job.vector.fill_holes_m2 > 0)  # rasters while it lasts
        usual[job.paths["vector"].parent] += pixels * (USUAL_VECTOR + given_away)
    for folder in usual:
        free = _free(folder)
        together = [other for other in usual if _device(other) == _device(folder)]
        needed, likely = (sum(sizes[other] for other in together) for sizes in (least, usual))
        where = f"{folder.absolute()}: {size_text(free)} free"
        if needed > free:
            raise OutputError(
                f"{where}, the outputs take at least {size_text(needed)}. Make room, or write to another disk"
            )
        if likely > free and folder == together[0]:
            _log.warning(
                "%s, the run may take some %s. If the disk fills up, make room and pass --resume",
                where,
                size_text(likely),
            )


def size_text(size: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # a file system that does not say
        return 1 << 62


def _device(folder: Path) -> int:
    return os.stat(folder).st_dev
