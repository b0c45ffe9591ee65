"""Settings of a run: each is declared once, with its help, bounds and unit, and checked when it is made.

The command line builds its options from these declarations.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from rsseg_cli.errors import UsageError

Tta = Literal["none", "flip", "d4", "scales"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Runtime = Literal["auto", "torch", "openvino", "onnxruntime"]
Alpha = Literal["auto", "mask", "data"]
Stretch = tuple[float, ...] | Literal["auto", "batch"]
VectorFormat = Literal["auto", "GPKG", "FlatGeobuf", "GeoParquet", "GeoJSON", "Shapefile"]
ALPHA = "What a band called alpha is; auto takes it as data if it has many values, as near-infrared has."
STRETCH = "Values that become black and white, for all bands or a pair for each"
MAX_COUNT = 10**9
REMAP = (
    "Merge, rename and recolour classes: a JSON list of name, from (the classes that it is made from), "
    "colour. Others stay."
)


@dataclass(frozen=True, kw_only=True)
class Option:
    """What the command line and the check of a setting know about it.

    Attributes:
        minimum, maximum: bounds, both allowed; `above` and `below` are not allowed themselves.
        unset: the default, outside the bounds, that leaves the choice to the program; not for the user.
        needs: the bounds in words; "" for words made of the bounds.
        choices: allowed texts of a `str` beside "".
        repeat: the option is given once for each item of a list.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    step: int = 1
    unset: Any = None
    needs: str = ""
    choices: tuple[str, ...] = ()
    example: str = ""
    repeat: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a number lies within the bounds; NaN never does where there are any."""
        inside = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return inside and (self.step == 1 or value % self.step == 0)

    @property
    def bounds(self) -> str:
        """The bounds in words, as messages state them."""
        if self.needs:
            return self.needs
        low = self.minimum if self.above is None else self.above
        text = f"{low:g}" if self.above is None else f"above {low:g}"
        if self.maximum is not None:
            text += f" to {self.maximum:g}"
        elif self.below is not None:
            text += f" up to, but not including, {self.below:g}"
        elif self.above is None:
            text += " or more"
        prefix = f"a multiple of {self.step} from " if self.step > 1 else ""
        return f"{prefix}{text} {self.unit}".rstrip()


def option(default: Any, help: str, *flags: str, **known: Any) -> Any:
    """A dataclass field that is also an option of the command line; `known` are fields of `Option`.

    A class as the default, as `dict`, makes a new one for each settings object.
    """
    metadata = {"option": Option(help=help, flags=flags, **known)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def options_of(settings: Any) -> dict[str, tuple[Option, Any]]:
    """The option and the type of each field that has one."""
    kinds = get_type_hints(settings)
    fields = {item.name: item.metadata.get("option") for item in dataclasses.fields(settings)}
    return {name: (known, kinds[name]) for name, known in fields.items() if known is not None}


def flag_of(name: str, known: Option) -> str:
    """The option's name as messages quote it: --tile-size."""
    long = [flag.split("/")[0] for flag in known.flags if flag.startswith("--")]
    return long[0] if long else f"--{name.replace('_', '-')}"


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The parts of a union, without None; of another type itself."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(part for part in parts if part is not type(None))


def check_bounds(settings: Any) -> None:
    """Check numbers and choices of a settings object against their options; `__post_init__` calls it."""
    for name, (known, kind) in options_of(type(settings)).items():  # type: ignore[arg-type]
        value = getattr(settings, name)
        if value is None or (known.unset is not None and value == known.unset):
            continue
        literals = [part for part in alternatives(kind) if get_origin(part) is Literal]
        choices = [text for part in literals for text in get_args(part)] or [*known.choices]
        is_bounded = [known.minimum, known.maximum, known.above, known.below] != [None] * 4
        if isinstance(value, str):
            fits = value in choices or (not is_bounded and (not choices or (not literals and not value)))
        else:
            fits = not is_bounded or known.allows(value)
        if not fits:
            words = [" or ".join(filter(None, [", ".join(choices[:-1]), *choices[-1:]]))]
            said = ", or ".join(filter(None, [known.bounds if is_bounded else "", *words]))
            raise UsageError(f"{flag_of(name, known)} {value!s:.80}: needs {said}")


class ModelWithSpec(Protocol):
    """A network in memory with its description: a `weights.TrainedModel`."""

    @property
    def network(self) -> Any: ...

    @property
    def spec(self) -> Any: ...


def check_stretch(stretch: Stretch) -> None:
    if isinstance(stretch, str):
        return
    pairs = zip(stretch[::2], stretch[1::2], strict=False)
    if (
        not stretch
        or len(stretch) % 2
        or not all(low < high for low, high in pairs)
        or math.inf in map(abs, stretch)
    ):
        shown = ",".join(f"{value:g}" for value in stretch)
        raise UsageError(f"--stretch {shown}: needs LOW,HIGH with LOW < HIGH, or such a pair for each band")


def stretch_pairs(stretch: Stretch, bands: int) -> list[tuple[float, float]]:
    """Return the given range of each band, [] if none was given."""
    if isinstance(stretch, str):
        return []
    pairs = list(zip(stretch[::2], stretch[1::2], strict=True))
    if len(pairs) not in (1, bands):
        raise UsageError(f"--stretch: {len(pairs)} pairs for {bands} bands; needs one pair, or {bands}")
    return pairs * bands if len(pairs) == 1 else pairs


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a scene is read, tiled and run.

    `readers` is the number of threads that read ahead. State from which a run resumes is saved every
    `checkpoint_s` seconds; shorter runs keep none.
    """

    # fmt: off
    tile_size: int = option(
        512, "Side of a tile, px: a multiple of 32; of the refiner's windows too.", unit="px", step=32,
        minimum=32, maximum=8192,
    )
    overlap: int = option(128, "Overlap of neighbouring tiles, px: 0 to half a tile.", unit="px")
    batch_size: int | Literal["auto"] = option(
        "auto", "Tiles in a batch.", metavar="N|auto", minimum=1, needs="a whole number from 1"
    )
    tta: Tta = option(
        "none",
        "Average over flipped views (4 times the work), flipped and rotated views (8 times), or the tile at "
        "its own and at twice its size (5 times).",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")
    runtime: Runtime = option(
        "auto",
        "Library that computes the network; auto is openvino on a CPU, torch elsewhere and for networks "
        "other than BiCoR-Seg and IDGBR lite.",
    )
    dtype: Dtype = option(
        "auto",
        "Arithmetic; auto is bfloat16 on CUDA and, by openvino, on CPUs that multiply in it (AMX, "
        "AVX512-BF16), float32 elsewhere.",
    )
    bands: tuple[int, ...] | None = option(
        None, "Bands of the scene in the model's order, from 1. Default: by name.", "--bidx", "-b",
        metavar="1,2,3", example="4,3,2",
    )
    nodata: float | None = option(
        None, "Value of pixels without data, in addition to the scene's own mask.", metavar="VALUE"
    )
    alpha: Alpha = option("auto", ALPHA)
    stretch: Stretch = option(
        "auto",
        f"{STRETCH}; auto takes the model's own, else the 2nd and 98th percentile of each band of more than "
        "8 bits, batch those of all scenes together.",
        metavar="LOW,HIGH|batch", example="0,3000",
    )
    gsd_m: float | None = option(
        None,
        "Ground resolution that the network sees, metres a pixel. Default: the model's, where the scene's "
        "does not suit it.",
        "--gsd", metavar="M", above=0, below=1e5, needs="metres a pixel above 0",
    )
    bbox: tuple[float, float, float, float] | None = option(
        None, "Map only this area, in the scene's CRS.", metavar="LEFT BOTTOM RIGHT TOP"
    )
    aoi: Path | None = option(
        None, "Vector file; map only the pixels inside its polygons.", metavar="FILE"
    )
    remap: Path | None = option(
        None, f"{REMAP} Probabilities are added up before the class is chosen.", metavar="CLASSES.json"
    )
    min_confidence: float = option(
        0.0, "Pixels of less confidence are unsure, 0 to 1.", metavar="P", minimum=0, maximum=1
    )
    unsure: Literal["nodata", "class"] = option("nodata", "Unsure pixels are 255, or a class of that name.")
    creation_options: Mapping[str, str] = option(
        dict, "GDAL creation option of the outputs; repeatable.", "--co", metavar="KEY=VALUE"
    )
    overwrite: bool = option(False, "Replace existing outputs.")
    readers: int = 2
    checkpoint_s: float = 5.0
    # fmt: on

    def __post_init__(self) -> None:
        self._to_plain()
        check_bounds(self)
        check_overlap(self.overlap, self.tile_size)
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise UsageError(f"--bidx {self.bands}: bands count from 1")
        if self.bbox is not None and not (
            len(self.bbox) == 4
            and all(map(math.isfinite, self.bbox))
            and self.bbox[0] < self.bbox[2]
            and self.bbox[1] < self.bbox[3]
        ):
            raise UsageError(f"--bbox {self.bbox}: needs left < right and bottom < top, in the scene's CRS")
        check_stretch(self.stretch)
        if self.readers < 1:
            raise UsageError(f"readers {self.readers}: needs 1 or more")

    def _to_plain(self) -> None:
        """Turn lists, arrays and their numbers into Python's own: callers pass results of numpy, rasterio."""
        plain = {
            "bands": None if self.bands is None else tuple(int(band) for band in self.bands),
            "bbox": None if self.bbox is None else tuple(float(edge) for edge in self.bbox),
            "nodata": None if self.nodata is None else float(self.nodata),
            "gsd_m": None if self.gsd_m is None else float(self.gsd_m),
            "aoi": None if self.aoi is None else Path(self.aoi),
            "remap": None if self.remap is None else Path(self.remap),
            "stretch": self.stretch
            if isinstance(self.stretch, str)
            else tuple(float(value) for value in self.stretch),
            "creation_options": {str(key): str(value) for key, value in self.creation_options.items()},
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)


def check_overlap(overlap: int, tile_size: int) -> None:
    if not 0 <= overlap <= tile_size // 2:
        raise UsageError(f"--overlap {overlap}: needs 0 to half the tile, {tile_size // 2} px")


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How the boundaries of a map are refined. The tile is rounded up to a size that the refiner takes."""

    # fmt: off
    refiner: str | Path | ModelWithSpec | None = option(
        None, "A bundled refiner, or a .safetensors file. Default: the one that the model names.",
        metavar="NAME|PATH",
    )
    steps: int | None = option(
        None, "Sampling steps. Default: the refiner's own.", metavar="N", minimum=1, maximum=1000
    )
    band_m: float | None = option(
        None,
        "Change only pixels within this distance of a boundary between classes, metres. Default: the "
        "refiner's.",
        metavar="M", above=0, below=1e5, needs="metres above 0",
    )
    ensemble: int = option(
        0, "Average this many samples. Default: 1, or 4 with --uncertainty.", metavar="K", minimum=1,
        maximum=256, unset=0,
    )
    seed: int = option(
        0, "Seed of the refiner's noise.", metavar="S", minimum=0, below=2**63,
        needs="a whole number from 0, less than 2**63",
    )
    tile_size: int = option(
        512, "Side of a window, px; rounded up to a size that the refiner takes.", unit="px", minimum=32,
        maximum=8192,
    )
    overlap: int | None = option(
        None,
        "Overlap of neighbouring windows, px: 0 to half a window. Default: the refiner's receptive field, so "
        "that no seams show.",
        unit="px",
    )
    gsd_m: float | None = option(
        None,
        "Ground resolution that the refiner sees, metres a pixel. Default: its own, where the map's does "
        "not suit it.",
        "--gsd", metavar="M", above=0, below=1e5, needs="metres a pixel above 0",
    )
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.overlap is not None:
            check_overlap(self.overlap, self.tile_size)


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """How a class raster becomes polygons. Lengths and areas are on the ground, in any CRS.

    `block_rows`: rows that a worker takes at once, 0 for the program's choice; polygons do not depend on it.
    """

    # fmt: off
    min_area_m2: float = option(
        0.0, "Merge objects below this area on the ground into the neighbour with the longest shared edge; "
        "leave out those without one.",
        "--min-area", unit="m2", minimum=0, below=math.inf, needs="a number of m2, 0 or more",
    )
    fill_holes_m2: float = option(
        0.0, "Fill holes below this area, those without data too.", "--fill-holes", unit="m2", minimum=0,
        below=math.inf, needs="a number of m2, 0 or more",
    )
    simplify_m: float = option(
        0.0, "Remove corners whose triangle is smaller than a square of this side, metres on the ground; "
        "shared edges stay shared.",
        "--simplify", unit="m", minimum=0, below=math.inf, needs="a number of m, 0 or more",
    )
    smooth: bool = option(
        False, "Round corners; boundaries are first simplified by one pixel, or by --simplify."
    )
    regularize: bool = option(
        False, "Square the outlines of buildings where the map allows: straight walls at right angles. "
        "Neighbours still share theirs; round and odd shapes stay.",
    )
    max_shift_m: float = option(
        0.0, "Farthest that --regularize moves a wall. Default: 3 pixels, or 3 times --simplify if more.",
        "--max-shift", unit="m", above=0, below=math.inf, unset=0, needs="a number of m above 0",
    )
    regularize_classes: tuple[str, ...] | None = option(
        None, "What --regularize squares. Default: classes called building, house, roof.", metavar="NAME,NAME"
    )
    classes: tuple[str, ...] | None = option(
        None, "Write only these classes, by name or index. Default: all.", metavar="NAME,NAME"
    )
    remap: Path | None = option(None, REMAP, metavar="CLASSES.json")
    dissolve: bool = option(False, "Write one multipolygon a class, not one polygon an object.")
    dst_crs: str = option("", "CRS of the polygons, such as EPSG:4326. Default: the raster's.", metavar="CRS")
    layer: str = option("", "Name of the layer. Default: the file's.", metavar="NAME")
    format: VectorFormat = option(
        "auto", "Format; auto goes by the extension: .gpkg .fgb .parquet .geojson .shp"
    )
    qml: bool = option(False, "Write a QGIS style beside the file; a GeoPackage carries its own.")
    jobs: int = option(
        0, "Worker processes; 0 for one per core, for large rasters.", "--jobs", "-j", metavar="N",
        minimum=0, maximum=256, needs="1 to 256, or 0 for one per core",
    )
    block_rows: int = 0
    overwrite: bool = option(False, "Replace an existing file.")
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.classes is not None and not self.classes:
            raise UsageError("--classes: names no class")
        if self.block_rows < 0:
            raise UsageError(f"block_rows {self.block_rows}: needs 1 or more, or 0 to choose")
        if len(self.layer) > 63 or any(sign in self.layer for sign in "\0\n\r\"'"):
            raise UsageError(f"--layer {self.layer!r}: needs at most 63 characters without quotes")
