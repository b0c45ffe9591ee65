"""ModelSpec: what a model file says of itself, so that a scene needs no further options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import msgspec

from rsseg_cli.errors import ModelError
from rsseg_cli.weights.tile_statistics import TileStatistics, problem_of, summarise

if TYPE_CHECKING:
    from torch import Tensor

SPEC_VERSION = 1
MAX_SPEC_BYTES = 1_000_000
MAX_NAME = 100  # characters of a class's, band's or model's name
Architecture = Literal["bicor-seg", "idgbr-lite", "idgbr", "onnx", "external"]
REFINERS = ("idgbr-lite", "idgbr")
MAX_TEXT = 100_000  # characters of a description's texts
MIN_TEMPERATURE = 0.05  # its inverse is the largest
MAX_DEPTH = 17  # of nested scores and settings
PALETTE = (
    (214, 69, 65), (222, 203, 164), (120, 120, 128), (76, 145, 65), (58, 124, 190),
    (240, 178, 50), (145, 100, 170), (90, 190, 190), (160, 110, 70), (230, 130, 170),
)  # fmt: skip


@dataclass(frozen=True)
class ClassSpec:
    """A class: its name and its colour on maps, (red, green, blue) from 0 to 255."""

    name: str
    colour: tuple[int, int, int]

    @staticmethod
    def from_names(classes: Sequence[str | ClassSpec]) -> tuple[ClassSpec, ...]:
        """Give classes without a colour one of the palette, in order."""
        return tuple(
            item if isinstance(item, ClassSpec) else ClassSpec(item, PALETTE[index % len(PALETTE)])
            for index, item in enumerate(classes)
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a network expects and what its outputs mean. Stored as JSON in the model file's metadata.

    Attributes:
        name: short name, as in `--model NAME`.
        architecture: "bicor-seg" segments, "idgbr-lite" and "idgbr" refine, "onnx" is in an ONNX
            file, "external" is the user's own.
        network: fields of the architecture's config, as `BicorSegConfig`.
        bands: names in the order of the network's channels.
        scaling: "unit" divides integers by their type's largest value and takes floats as they are; "stretch"
            does so for 8-bit scenes and stretches others between each band's 2nd and 98th percentile.
        stretch: the range of each band that training images were stretched from, whatever their own is; ()
            for none. Scenes of 8 bits are, where it lies within 8 bits.
        gsd_m: ground resolution that suits the network, m a pixel; None runs any scene as it is.
        gsd_range_m: resolutions that the model knows; others are run at `gsd_m`, coarse ones enlarged by
            `MAX_ENLARGEMENT` at most.
        enlargement: of scenes in that range that are coarser than `gsd_m`, at most; 1 runs them as they are.
        refinement: how to use a refiner: "steps" of the sampler, "band_m" around boundaries that may change,
            "model" whose maps it was trained on, "model_gsd_m" that model's resolution.
        temperature: probabilities are those of the logits divided by it, chosen on validation data.
        training_tiles: statistics of the training data by kind: colour, texture, features; {} if not known.
    """

    MAX_ENLARGEMENT: ClassVar[float] = 2.5  # more costs its square in time, and shows the network nothing new
    MAX_CLASSES: ClassVar[int] = 254  # a class raster is uint8, and 254 and 255 have other meanings

    name: str
    architecture: str  # an `Architecture`
    classes: tuple[ClassSpec, ...]
    bands: tuple[str, ...] = ("red", "green", "blue")
    network: dict[str, Any] = field(default_factory=dict)
    scaling: Literal["unit", "stretch"] = "stretch"
    stretch: tuple[tuple[float, float], ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    gsd_m: float | None = None
    gsd_range_m: tuple[float, float] | None = None
    enlargement: float = 1.0
    description: str = ""
    license: str = ""
    data: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    refiner: str | None = None
    refinement: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    training_tiles: dict[str, TileStatistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ModelError(f"model {self.name!r}: {problem}")

    def _problem(self) -> str | None:
        if self.architecture not in get_args(Architecture):
            known = ", ".join(get_args(Architecture)[:-1])
            return f"architecture {self.architecture!r} is unknown; this version knows {known}"
        if not 1 <= len(self.classes) <= self.MAX_CLASSES:
            return f"{len(self.classes)} classes; needs 1 to {self.MAX_CLASSES}"
        names = [item.name for item in self.classes]
        if len(set(names)) != len(names) or not all(names):
            return f"class names must be different and not empty, got {names!s:.500}"
        for name in (self.name, *names, *self.bands, *filter(None, [self.refiner])):
            if not name or len(name) > MAX_NAME or not name.isprintable():
                return f"name {name!r:.{MAX_NAME}}: needs 1 to {MAX_NAME} printable characters"
        if any(
            len(item.colour) != 3 or not all(0 <= part <= 255 for part in item.colour)
            for item in self.classes
        ):
            return "colours need three numbers from 0 to 255"
        if not self.bands or len(self.mean) != len(self.bands) or len(self.std) != len(self.bands):
            counts = f"{len(self.bands)} bands, {len(self.mean)} means, {len(self.std)} deviations"
            return f"{counts}; needs a mean and a deviation for each band"
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            return "mean and std must be finite, std above 0"
        if self.scaling not in ("unit", "stretch"):
            return f"scaling {self.scaling!r}; needs unit or stretch"
        if self.stretch and len(self.stretch) != len(self.bands):
            return f"stretch of {len(self.stretch)} bands; needs one for each of {len(self.bands)}"
        if not all(-math.inf < low < high < math.inf for low, high in self.stretch):
            return f"stretch {self.stretch!s:.80}; needs pairs of low and high"
        if self.gsd_m is not None and not (math.isfinite(self.gsd_m) and self.gsd_m > 0):
            return f"gsd_m {self.gsd_m}; needs metres above 0"
        if self.gsd_range_m is not None:
            low, high = self.gsd_range_m
            if self.gsd_m is None or not 0 < low <= self.gsd_m <= high < math.inf:
                return f"gsd_range_m {self.gsd_range_m} must enclose gsd_m {self.gsd_m}"
        if not 1 <= self.enlargement <= self.MAX_ENLARGEMENT:
            return f"enlargement {self.enlargement}; needs 1 to {self.MAX_ENLARGEMENT:g}"
        if not MIN_TEMPERATURE <= self.temperature <= 1 / MIN_TEMPERATURE:
            return f"temperature {self.temperature}; needs {MIN_TEMPERATURE:g} to {1 / MIN_TEMPERATURE:g}"
        return problem_of(self.training_tiles) or self._refinement_problem()

    def _refinement_problem(self) -> str | None:
        steps, band_m = self.refinement.get("steps", 1), self.refinement.get("band_m", 1.0)
        if type(steps) is not int or not 1 <= steps <= 1000:
            return f"refinement steps {steps!r:.40}; needs a whole number from 1 to 1000"
        if not isinstance(band_m, int | float) or not 0 < band_m < 1e5:
            return f"refinement band_m {band_m!r:.40}; needs metres above 0"
        model_gsd_m = self.refinement.get("model_gsd_m")
        if model_gsd_m is not None and not (isinstance(model_gsd_m, int | float) and 0 < model_gsd_m < 1e5):
            return f"refinement model_gsd_m {model_gsd_m!r:.40}; needs metres above 0"
        return None

    @property
    def assumed_gsd_m(self) -> float | None:
        """Ground resolution assumed for scenes without CRS: of a refiner, its model's."""
        known: float | None = self.refinement.get("model_gsd_m")
        return known or self.gsd_m

    def network_gsd_m(self, scene_gsd_m: float, *, is_known: bool) -> float:
        """Ground resolution at which a scene is run; `is_known`: it lies within `gsd_range_m`."""
        if self.gsd_m is None or (is_known and scene_gsd_m <= self.gsd_m):
            return scene_gsd_m
        return max(self.gsd_m, scene_gsd_m / (self.enlargement if is_known else self.MAX_ENLARGEMENT))

    def fixed_ranges(self, dtypes: Sequence[str]) -> list[tuple[float, float]]:
        """Return the model's own range of each band of a scene of such types; [] for none."""
        wide = any(dtype != "uint8" for dtype in dtypes)
        return [*self.stretch] if wide or all(high <= 255 for _, high in self.stretch) else []

    @property
    def is_refiner(self) -> bool:
        return self.architecture in REFINERS

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.classes)

    @classmethod
    def for_network(
        cls,
        *,
        classes: Sequence[str | ClassSpec],
        bands: Sequence[str] = ("red", "green", "blue"),
        name: str = "external",
    ) -> ModelSpec:
        """Describe a user's own network: pixels scaled to [0, 1], nothing subtracted, no resampling."""
        return cls(
            name=name,
            architecture="external",
            classes=ClassSpec.from_names(classes),
            bands=tuple(bands),
            scaling="unit",
            mean=(0.0,) * len(bands),
            std=(1.0,) * len(bands),
        )

    def with_training_tiles(
        self, training: Mapping[str, Tensor], held_out: Mapping[str, Tensor]
    ) -> ModelSpec:
        """Return the description with statistics of descriptors (tiles, D) by kind; see `TileStatistics`."""
        parts = [
            {kind: values.double().numpy() for kind, values in part.items()} for part in (training, held_out)
        ]
        return replace(self, training_tiles=summarise(*parts))

    @property
    def stac_classes(self) -> list[dict[str, Any]]:
        """Classes as STAC's classification extension describes them."""
        from rsseg_cli.weights.stac import class_objects

        return class_objects(self.classes)

    def stac_item(self, file: Path, sha256: str) -> dict[str, Any]:
        """Return a STAC Item of the model, in types that JSON has."""
        from rsseg_cli.weights.stac import model_item

        return model_item(self, file, sha256)

    def to_json(self) -> str:
        """Write strict JSON; scores and settings that are not finite become null."""
        values = {"spec_version": SPEC_VERSION, **asdict(self)}
        if not self.stretch:  # read by earlier versions too
            del values["stretch"]
        values["training"], values["scores"] = _finite(self.training), _finite(self.scores)
        return json.dumps(values, ensure_ascii=False, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "model file") -> ModelSpec:
        """Parse a description from a file that is not trusted; ModelError where it is not one."""
        if len(text) > MAX_SPEC_BYTES:
            raise ModelError(
                f"{where}: model description of {len(text)} characters; at most {MAX_SPEC_BYTES} are read"
            )
        try:
            values = msgspec.json.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError) as err:
            raise ModelError(f"{where}: model description is no JSON ({err})") from err
        if not isinstance(values, dict):
            raise ModelError(f"{where}: model description is no JSON object")
        version = values.pop("spec_version", None)
        if version != SPEC_VERSION:
            raise ModelError(
                f"{where}: model description of version {version!r:.80}; this program reads {SPEC_VERSION}"
            )
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ModelError(f"{where}: unknown fields in the model description: {names:.500}")
        try:
            _check_plain(values)
            return msgspec.convert(values, cls)
        except ModelError as err:
            raise ModelError(f"{where}: {err}") from err
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as err:
            raise ModelError(f"{where}: model description has a wrong value ({err})") from err


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuse values that cannot be shown and stored again: deep ones, long texts, control characters."""
    if depth > MAX_DEPTH:
        raise TypeError(f"values nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ValueError(f"a text of {len(value)} characters; needs {MAX_TEXT} or less")
        if any(not char.isprintable() and char not in "\n\t" for char in value):
            raise ValueError(f"{value!r:.80} holds control characters")
    elif isinstance(value, dict):
        for item in (*value, *value.values()):
            _check_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
