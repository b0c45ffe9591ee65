"""Which bands of a scene a model sees: by name, by colour interpretation, or by position."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from rsseg_cli.errors import SceneError, UsageError
from rsseg_cli.raster import gdal

if TYPE_CHECKING:
    from rsseg_cli.raster.info import SceneInfo

logger = logging.getLogger(__name__)
ALPHA_SHARE = 0.1  # of values between empty and full; with more, a band called alpha is data
PROBE_PX = 64
SYNONYMS = {
    "near infrared": "nir", "near-infrared": "nir", "nearinfrared": "nir", "near_infrared": "nir",
    "infrared": "nir", "gray": "grey", "panchromatic": "pan",
}  # fmt: skip


def select_bands(
    info: SceneInfo, wanted: Sequence[str], bidx: Sequence[int] | None = None, model: str = ""
) -> tuple[int, ...]:
    """Return 1-based bands of the scene in the order of the model's.

    By `bidx`; else each by its description or colour interpretation; else, if the model wants red, green,
    blue (and nir), the first bands that are not alpha; else all, if there are as many as the model wants.
    GDAL calls the last of four bytes alpha by default: given by `bidx`, or needed and with values between
    empty and full, it is data and marks no pixels.
    """
    if bidx is not None:
        chosen = _check_bidx(info, tuple(wanted), tuple(bidx))
    else:
        chosen = (
            _bands_by_name(info, wanted)
            or _bands_by_position(info, tuple(name.lower() for name in wanted))
            or _all_bands(info, wanted)
        )
    kinds = {info.colour_interpretations[band - 1] for band in chosen}
    if not chosen or ("palette" in kinds and len(wanted) > 1):
        bands = f"{info.count} band{'s' if info.count > 1 else ''} ({_describe_bands(info)})"
        needs = f"model {model!r} needs" if model else "needed are"
        advice = "Pass --bidx or another model."
        if "palette" in info.colour_interpretations:
            advice = "Expand its palette first: gdal_translate -expand rgb."
        elif "alpha" in info.colour_interpretations and info.count == len(wanted):
            every = ",".join(map(str, range(1, info.count + 1)))
            advice = f"Its alpha band marks pixels without data; if it is data pass --bidx {every}."
        raise SceneError(f"{info.name}: {bands}, {needs} {len(wanted)} ({', '.join(wanted)}). {advice}")
    dtypes = {info.dtypes[band - 1] for band in chosen}
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise SceneError(
            f"{info.name}: complex numbers ({', '.join(sorted(dtypes))}); needs integers or floats."
        )
    return chosen


def _describe_bands(info: SceneInfo) -> str:
    dtypes = ", ".join(dict.fromkeys(info.dtypes))
    return f"{dtypes}, palette" if "palette" in info.colour_interpretations else dtypes


def _check_bidx(info: SceneInfo, wanted: tuple[str, ...], bidx: tuple[int, ...]) -> tuple[int, ...]:
    shown = ",".join(map(str, bidx))
    if len(bidx) != len(wanted):
        raise UsageError(
            f"--bidx {shown}: {len(bidx)} bands, the model needs {len(wanted)} ({', '.join(wanted)})"
        )
    if not all(1 <= band <= info.count for band in bidx):
        raise UsageError(f"--bidx {shown}: {info.name} has bands 1 to {info.count}")
    for band in sorted(set(bidx) - set(info.colour_bands)):
        logger.warning("%s: band %d is alpha; taken as data, as --bidx %s says", info.name, band, shown)
    return bidx


def _bands_by_name(info: SceneInfo, wanted: Sequence[str]) -> tuple[int, ...]:
    chosen = []
    for name in map(_plain, wanted):
        bands = [b for b in info.colour_bands if _plain(info.descriptions[b - 1] or "") == name]
        bands += [b for b in info.colour_bands if _plain(info.colour_interpretations[b - 1]) == name]
        if not bands:
            return ()
        chosen.append(bands[0])
    return tuple(chosen)


def _plain(name: str) -> str:
    name = name.strip().lower()
    return SYNONYMS.get(name, name)


def _bands_by_position(info: SceneInfo, wanted: tuple[str, ...]) -> tuple[int, ...]:
    colours = info.colour_bands
    rgb_like = wanted in (("red", "green", "blue"), ("red", "green", "blue", "nir"))
    enough = len(colours) >= len(wanted) if rgb_like else len(colours) == len(wanted)
    if not enough or "palette" in info.colour_interpretations:
        return ()
    chosen = colours[: len(wanted)]
    logger.info("%s: bands %s taken as %s", info.name, ", ".join(map(str, chosen)), ", ".join(wanted))
    return chosen


def _all_bands(info: SceneInfo, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return all bands if there are as many as wanted and the one called alpha holds data."""
    if info.count != len(wanted) or info.colour_interpretations.count("alpha") != 1:
        return ()
    alpha = info.colour_interpretations.index("alpha") + 1
    if not _holds_data(info, alpha):
        return ()
    logger.warning("%s: band %d is called alpha; taken as %s", info.name, alpha, wanted[alpha - 1])
    return tuple(range(1, info.count + 1))


def _holds_data(info: SceneInfo, band: int) -> bool:
    """Whether a tenth of the values in some windows lie between 0 and the largest."""
    grid, parts = info.grid, []
    with gdal.reading(info.path) as dataset:
        for part in (0.25, 0.5, 0.75):
            row, col = int(grid.height * part), int(grid.width * part)
            window = Window(col, row, min(PROBE_PX, grid.width - col), min(PROBE_PX, grid.height - row))
            parts.append(dataset.read(band, window=window).ravel())
    values = np.concatenate(parts)
    return bool(np.mean((values > 0) & (values < values.max())) > ALPHA_SHARE)
