"""Whether the files of a run can fit, before it begins.

How much outputs shrink is not known before: an empty map, to a thousandth. A run is refused only where its
outputs cannot fit at all: uncompressed ones at their full size, DEFLATE's at a 1032nd. Where the usual size
does not fit there is a warning; a disk that fills up ends a run, and --resume continues it.
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
MAX_SHRINK = {"NONE": 1.0, "DEFLATE": 1032.0}  # https://zlib.net/zlib_tech.html
# Compressed bytes a pixel and band, of land cover of drawn and real scenes.
USUAL = {"labels": 0.06, "confidence": 0.6, "probabilities": 0.35, "heatmaps": 0.6, "uncertainty": 0.3}
USUAL_VECTOR = 0.1  # a pixel
_log = logging.getLogger(__name__)


def check_space(job: Job, *, coarse: bool = False) -> None:
    """Compare the space that is needed with that which is free, on every disk that is written to.

    Args:
        coarse: the coarse map is kept beside the refined one.
    """
    minimum: defaultdict[Path, float] = defaultdict(float)
    usual: defaultdict[Path, float] = defaultdict(float)
    pixels = job.grid.width * job.grid.height
    options = {key.upper(): value.upper() for key, value in job.config.creation_options.items()}
    shrink = MAX_SHRINK.get(options.get("COMPRESS", "DEFLATE"), math.inf)
    work = job.paths["labels"].parent
    for kind, part in job.layers.items():
        full = pixels * (part.stop - part.start) * OVERVIEWS
        minimum[job.paths[kind].parent] += full / shrink
        usual[job.paths[kind].parent] += full * (USUAL[kind] if shrink > 1 else 1)
        usual[work] += full * USUAL[kind] * (2 if coarse and kind != "uncertainty" else 1)
    if "vector" in job.paths:
        rasters = (job.vector.min_area_m2 > 0) + (job.vector.fill_holes_m2 > 0)  # temporary
        usual[job.paths["vector"].parent] += pixels * (USUAL_VECTOR + rasters)
    for folder in usual:
        free = _free(folder)
        same_disk = [other for other in usual if os.stat(other).st_dev == os.stat(folder).st_dev]
        needed, likely = (sum(sizes[other] for other in same_disk) for sizes in (minimum, usual))
        where = f"{folder.absolute()}: {size_text(free)} free"
        if needed > free:
            raise OutputError(
                f"{where}, the outputs take at least {size_text(needed)}. Make room, or write to another disk"
            )
        if likely > free and folder == same_disk[0]:
            advice = "If the disk fills up, make room and pass --resume"
            _log.warning("%s, the run may take some %s. %s", where, size_text(likely), advice)


def size_text(size: float) -> str:
    """Write a number of bytes in a suitable unit."""
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
