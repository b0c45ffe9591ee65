"""Settings of a training run, put together: defaults < recipe < TOML file < options of the command line."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rsseg_cli.errors import UsageError
from rsseg_cli.training.config import (
    REFINER_TRAINING,
    NetworkSettings,
    RefinerNetworkSettings,
    RefiningConfig,
    TrainConfig,
)

MAX_CONFIG_BYTES = 1_000_000
SECTIONS = {
    "network": tuple(item.name for item in dataclasses.fields(NetworkSettings)),
    "training": (
        "epochs", "crops_per_epoch", "batch_size", "accumulate", "precision", "learning_rate", "end_rate",
        "encoder_rate", "schedule", "warmup", "weight_decay", "decay_vectors", "lookahead",
        "lookahead_alpha", "clip", "ema", "patience", "tile_size", "workers", "seed",
    ),
    "crops": (
        "crop_size", "scales", "mosaic", "turns", "redraw_above", "redraws", "colour", "drawn_share",
        "drawn_scenes",
    ),
    "losses": ("smoothing", "auxiliary", "heatmaps", "fisher", "fisher_last"),
}  # fmt: skip

# Source: arXiv 2512.20255 and its released program. Where neither says anything: Lookahead's k and alpha are
# those of its paper (arXiv 1907.08610), an epoch is one pass over the scenes, gradients are not clipped.
_PUBLISHED = {
    "arch": "paper", "neck": "published", "channels": 256, "encoder_weights": "imagenet", "mean": (),
    "std": (), "epochs": 45, "batch_size": 4, "accumulate": 1, "crop_size": 512, "topk_ratio": 1.0,
    "layers": 2, "weight_decay": 0.01, "decay_vectors": True, "lookahead": 5, "lookahead_alpha": 0.5,
    "schedule": "epoch", "end_rate": 1e-6, "warmup": 0.0, "encoder_rate": 1.0, "ema": 0.0, "clip": 0.0,
    "patience": 0, "crops_per_epoch": "auto", "scales": (0.75, 1.5), "mosaic": 0.25, "turns": True,
    "redraw_above": 0.75, "redraws": 11, "colour": 0.0, "drawn_share": 0.0, "smoothing": 0.05,
    "auxiliary": 0.4, "heatmaps": 0.1, "fisher": 0.1, "fisher_last": 0.0,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "finetune": {"learning_rate": 3e-4, "epochs": 20, "warmup": 0.1},
    "paper:loveda": {
        **_PUBLISHED, "topk_ratio": 0.02, "epochs": 30, "batch_size": 8, "learning_rate": 8e-5,
        "fisher_last": 1.0,
    },
    "paper:vaihingen": {**_PUBLISHED, "learning_rate": 5e-5},
    "paper:potsdam": {**_PUBLISHED, "layers": 3, "learning_rate": 1e-4, "crop_size": 768},
}  # fmt: skip
PUBLISHED_FOR = ("loveda", "vaihingen", "potsdam")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run.

    Attributes:
        training: everything else.
    """

    recipe: str = "default"
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainConfig = field(default_factory=TrainConfig)

    def values(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value, in the order of `SECTIONS`."""
        flat = vars(self.network) | vars(self.training)
        return {section: {key: flat[key] for key in keys} for section, keys in SECTIONS.items()}

    def to_toml(self) -> str:
        """A file that `--config` reads back and that gives these settings again."""
        return "\n".join([f"recipe = {_toml(self.recipe)}", *toml_lines(self.values())]) + "\n"


def toml_lines(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sections with their settings as lines of TOML, an empty one before each."""
    lines = []
    for section, items in values.items():
        lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in items.items())]
    return lines


def resolve_settings(
    given: Mapping[str, Any] | None = None, *, recipe: str = "", config: Path | None = None, dataset: str = ""
) -> Settings:
    """Settings of a run: defaults, then the recipe's, then the file's, then those given.

    Args:
        given: setting -> value, as options name them.
        recipe: a key of `RECIPES`, or "paper" with a `dataset` that it was published for. Without one, the
            file's; without that, "finetune" where a model to start from is given.
        config: TOML file, flat or in sections, with an optional `recipe`.
        dataset: name of the data set, "" for one's own data.

    Raises:
        UsageError: an unknown recipe or key, a wrong type, a value out of bounds.
    """
    from_file = read_config(config) if config else {}
    given = {key: checked(key, value, "option") for key, value in (given or {}).items()}
    own_recipe = from_file.pop("recipe", "")
    starts = given.get("init", from_file.get("init", ""))
    name = recipe_name(recipe or own_recipe or ("finetune" if starts else "default"), dataset)
    merged = {**RECIPES[name], **from_file, **given}
    network = {key: merged.pop(key) for key in SECTIONS["network"] if key in merged}
    _check_start(network.get("init", ""), given, ("arch", "neck", "layers", "channels"))
    try:
        return Settings(recipe=name, network=NetworkSettings(**network), training=TrainConfig(**merged))
    except UsageError as err:
        where = f"recipe {name}" + (f" with {config}" if config else "")
        raise UsageError(f"{err} ({where})") from err


def _check_start(init: str, given: Mapping[str, Any], sizes: Iterable[str]) -> None:
    """Refuse sizes beside a model to start from: its own count."""
    wrong = sorted(set(sizes) & given.keys())
    if init and wrong:
        option = wrong[0].replace("_", "-")
        raise UsageError(f"--{option} with --init: the sizes are those of {init}")


def recipe_name(recipe: str, dataset: str) -> str:
    """The full name of a recipe; "paper" takes the data set's."""
    if recipe == "paper":
        if dataset not in PUBLISHED_FOR:
            listed = ", ".join(f"paper:{name}" for name in PUBLISHED_FOR)
            raise UsageError(
                f"--recipe paper: values were published for {', '.join(PUBLISHED_FOR)}; say which to take "
                f"for your data: {listed}"
            )
        return f"paper:{dataset}"
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe!r:.80}: needs one of paper, {', '.join(RECIPES)}")
    return recipe


class Known(NamedTuple):
    """Settings that a file may hold: keys by section, and their types."""

    sections: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, Any]
    recipes: bool


def read_config(path: Path, known: Known | None = None) -> dict[str, Any]:
    """Settings of a TOML file, flat: keys may stand at its top or in their sections.

    Args:
        known: what it may hold; those of a segmentation network's run by default.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are read")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as err:
        raise UsageError(f"{path}: cannot be read as TOML ({err})") from err
    values: dict[str, Any] = {}
    known = known or SEGMENTATION
    for key, value in found.items():
        if key == "recipe" and known.recipes and isinstance(value, str):
            values[key] = value
        elif isinstance(value, dict):
            values |= _section(path, key, value, known)
        else:
            values[key] = checked(key, value, str(path), known)
    return values


def _section(path: Path, section: str, values: dict[str, Any], known: Known) -> dict[str, Any]:
    sections = known.sections
    if section not in sections:
        raise UsageError(f"{path}: section [{section:.80}] is unknown; needs one of {', '.join(sections)}")
    wrong = sorted(set(values) - set(sections[section]))
    if wrong:
        allowed = ", ".join(sections[section])
        raise UsageError(f"{path}: [{section}] has no setting {wrong[0]!r:.80}; needs {allowed}")
    return {key: checked(key, value, f"{path}: [{section}]", known) for key, value in values.items()}


def setting_types() -> dict[str, Any]:
    """Setting -> its type."""
    return typing.get_type_hints(NetworkSettings) | typing.get_type_hints(TrainConfig)


def checked(key: str, value: Any, where: str, known: Known | None = None) -> Any:
    """The value in the setting's type; whole numbers serve as decimal ones, lists as tuples."""
    known = known or SEGMENTATION
    kinds = known.kinds
    if key not in kinds:
        names = ", ".join([*(["recipe"] if known.recipes else []), *kinds])
        raise UsageError(f"{where}: unknown setting {key!r:.80}; needs one of {names}")
    try:
        return msgspec.convert(value, kinds[key])
    except msgspec.ValidationError as err:
        raise UsageError(f"{where}: {key} = {value!r:.80}; needs {_words(kinds[key])}") from err


def _words(kind: Any) -> str:
    """Return a type in words: "a whole number or auto"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(f'"{item}"' for item in arguments)
    if origin is tuple:
        return "a list of numbers" if Ellipsis in arguments else f"a list of {len(arguments)} numbers"
    if arguments:
        return " or ".join(map(_words, arguments))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


SEGMENTATION = Known(SECTIONS, setting_types(), recipes=True)


REFINER_SECTIONS = {
    "network": tuple(item.name for item in dataclasses.fields(RefinerNetworkSettings)),
    "training": (
        "epochs", "crops_per_epoch", "batch_size", "accumulate", "precision", "learning_rate", "end_rate",
        "warmup", "weight_decay", "clip", "ema", "patience", "tile_size", "workers", "seed",
    ),
    "crops": ("crop_size", "scales", "turns", "redraw_above", "colour", "drawn_share", "drawn_scenes"),
    "refining": tuple(item.name for item in dataclasses.fields(RefiningConfig)),
}  # fmt: skip


SIZES = (
    "encoder",
    "widths",
    "middle",
    "window_px",
    "latent_channels",
    "codec_channels",
    "noise",
    "band_px",
    "steps",
    "time_sampling",
)  # fmt: skip; of the network, which --init takes from its model


@dataclass(frozen=True, kw_only=True)
class RefinerSettings:
    """All settings of a refiner's run.

    Attributes:
        refining: everything else.
    """

    network: RefinerNetworkSettings = field(default_factory=RefinerNetworkSettings)
    training: TrainConfig = REFINER_TRAINING
    refining: RefiningConfig = field(default_factory=RefiningConfig)

    def __post_init__(self) -> None:
        if self.refining.stage == "refiner" and not self.network.init:
            raise UsageError(
                "--stage refiner: needs a trained codec; pass --init with the first stage's file"
            )

    def values(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value, in the order of `REFINER_SECTIONS`."""
        flat = vars(self.network) | vars(self.training) | vars(self.refining)
        return {section: {key: flat[key] for key in keys} for section, keys in REFINER_SECTIONS.items()}

    def to_toml(self) -> str:
        """As `Settings.to_toml`."""
        return "\n".join(toml_lines(self.values())[1:]) + "\n"


def refiner_setting_types() -> dict[str, Any]:
    """Setting -> its type."""
    parts = (RefinerNetworkSettings, TrainConfig, RefiningConfig)
    kinds = {key: kind for part in parts for key, kind in typing.get_type_hints(part).items()}
    return {key: kinds[key] for keys in REFINER_SECTIONS.values() for key in keys}


REFINER_KNOWN = Known(REFINER_SECTIONS, refiner_setting_types(), recipes=False)


def resolve_refiner_settings(
    given: Mapping[str, Any] | None = None, *, config: Path | None = None
) -> RefinerSettings:
    """Settings of a refiner's run: defaults, then the file's, then those given.

    Raises:
        UsageError: an unknown key, a wrong type, a value out of bounds.
    """
    merged = read_config(config, REFINER_KNOWN) if config else {}
    given = {key: checked(key, value, "option", REFINER_KNOWN) for key, value in (given or {}).items()}
    merged |= given
    _check_start(merged.get("init", ""), given, ("arch", *SIZES))
    course = _of(merged, REFINER_SECTIONS["training"] + REFINER_SECTIONS["crops"])
    return RefinerSettings(
        network=RefinerNetworkSettings(**_of(merged, REFINER_SECTIONS["network"])),
        training=dataclasses.replace(REFINER_TRAINING, **course),
        refining=RefiningConfig(**_of(merged, REFINER_SECTIONS["refining"])),
    )


def _of(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
