"""Which bands of a scene a model sees: by name, wavelength or colour interpretation, or by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from rsseg_cli.errors import SceneError, UsageError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.band_names import colour_of, sensor_names

if TYPE_CHECKING:
    from rsseg_cli.raster.info import SceneInfo

MIN_DATA_SHARE = 0.2  # of the values above 0, those below the largest; with more, an alpha band is data
MIN_DATA_VALUES = 8  # different ones of these
PROBES = 8  # windows along each side that an alpha band is judged by
PROBE_PX = 48
SMALL_PX = 1 << 20


def select_bands(
    info: SceneInfo, wanted: Sequence[str], bidx: Sequence[int] | None = None, model: str = ""
) -> tuple[int, ...]:
    """Return 1-based bands of the scene in the order of the model's.

    By `bidx`; else each by its name or wavelength, by its sensor's number, or by its colour interpretation;
    else, with a warning, the first bands that are not alpha if the model wants red, green, blue (and nir), or
    all bands if there are as many as it wants.
    """
    if bidx is not None:
        chosen = _check_bidx(info, tuple(wanted), tuple(bidx))
    else:
        chosen = _bands_by_name(info, wanted) or _bands_by_position(info, tuple(wanted))
    kinds = {info.colour_interpretations[band - 1] for band in chosen}
    if not chosen or ("palette" in kinds and len(wanted) > 1):
        bands = f"{info.count} band{'s' if info.count > 1 else ''} ({_describe_bands(info)})"
        needs = f"model {model!r} needs" if model else "needed are"
        advice = _advice(info, wanted)
        raise SceneError(f"{info.name}: {bands}, {needs} {len(wanted)} ({', '.join(wanted)}). {advice}")
    dtypes = {info.dtypes[band - 1] for band in chosen}
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise SceneError(
            f"{info.name}: complex numbers ({', '.join(sorted(dtypes))}); needs integers or floats."
        )
    return chosen


def _advice(info: SceneInfo, wanted: Sequence[str]) -> str:
    if "palette" in info.colour_interpretations:
        return "Expand its palette first: gdal_translate -expand rgb."
    if "alpha" in info.colour_interpretations and info.count == len(wanted):
        every = ",".join(map(str, range(1, info.count + 1)))
        return f"Its alpha band marks pixels without data; if it is data pass --bidx {every}."
    if info.count < len(wanted) and gdal.is_description(info.path):
        return "Pass another model; or the file itself, if its parts of one grid are the bands."
    if info.count < len(wanted):
        files = " ".join(f"{name.upper()}.tif" for name in wanted)
        every = ",".join("1" * len(wanted))
        grey = f". --bidx {every} maps it in grey, less well" if info.count == 1 else ""
        return (
            "Pass another model; or, if each band has a file of its own, join them first: "
            f"gdalbuildvrt -separate scene.vrt {files}{grey}"
        )
    return "Pass --bidx or another model."


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
        info.warn(f"{info.name}: band {band} is alpha; taken as data, as --bidx {shown} says")
    return bidx


def _bands_by_name(info: SceneInfo, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the bands by what the file says of them; () if it does not say where one of them is."""
    colours = [name.colour for name in info.band_names]
    numbered, guess = sensor_names(info.descriptions)
    kinds = [colour_of(kind) for kind in info.colour_interpretations]
    for names in (colours, numbered, [name or kind for name, kind in zip(colours, kinds, strict=True)]):
        chosen = tuple(_band_called(info, names, name) for name in wanted)
        if all(chosen) and len(set(chosen)) == len(chosen):
            if names is numbered and guess:
                shown = ", ".join(str(info.descriptions[band - 1]) for band in chosen)
                info.warn(
                    f"{info.name}: bands {shown} are taken as {', '.join(wanted)}, as {guess} numbers them; "
                    "pass --bidx if they are others"
                )
            return chosen
    return ()


def _band_called(info: SceneInfo, names: Sequence[str], wanted: str) -> int:
    """Return the band of that name, else of that colour, best one first; 0 for none."""
    colour = colour_of(wanted)

    def rank(band: int) -> tuple[bool, bool, float, int]:
        name, text = info.band_names[band - 1], info.descriptions[band - 1] or ""
        return text.strip().casefold() != wanted.strip().casefold(), not name.exact, name.offset_nm, band

    called = [band for band in info.colour_bands if not rank(band)[0]]
    coloured = [band for band in info.colour_bands if colour and names[band - 1] == colour]
    return min(called + coloured, key=rank, default=0)


def _bands_by_position(info: SceneInfo, wanted: tuple[str, ...]) -> tuple[int, ...]:
    colours = info.colour_bands
    rgb_like = [colour_of(name) for name in wanted] in (
        ["red", "green", "blue"],
        ["red", "green", "blue", "nir"],
    )
    enough = len(colours) >= len(wanted) if rgb_like else len(colours) == len(wanted)
    if not enough or "palette" in info.colour_interpretations:
        return ()
    chosen = colours[: len(wanted)]
    if len(wanted) > 1:
        called = [text for text in info.descriptions if text]
        says = f"calls its bands {', '.join(called[:8])}" if called else "does not name its bands"
        numbers = ", ".join(map(str, chosen))
        info.warn(
            f"{info.name}: {says}; bands {numbers} are taken as {', '.join(wanted)}; pass --bidx if they are "
            "others"
        )
    return chosen


def holds_data(dataset: Any, band: int) -> int:
    """Return how many different values a band called alpha has between 0 and its largest; 0 for a mask."""
    height, width = dataset.height, dataset.width
    if dataset.overviews(band) or height * width <= SMALL_PX:
        shrink = max(1, max(height, width) / 1024)
        values = dataset.read(band, out_shape=(max(1, int(height / shrink)), max(1, int(width / shrink))))
    else:
        windows = probe_windows(height, width)
        values = np.concatenate([dataset.read(band, window=window).ravel() for window in windows])
    some = values[values > 0]
    if not some.size:
        return 0
    between = some[some < some.max()]
    count = len(np.unique(between))
    return count if count >= MIN_DATA_VALUES and between.size > MIN_DATA_SHARE * some.size else 0


def probe_windows(height: int, width: int) -> list[Window]:
    """Return small windows spread evenly over a raster, its edges included."""
    rows = np.linspace(0, max(0, height - PROBE_PX), PROBES).astype(int)
    cols = np.linspace(0, max(0, width - PROBE_PX), PROBES).astype(int)
    return [Window(col, row, min(PROBE_PX, width), min(PROBE_PX, height)) for row in rows for col in cols]
