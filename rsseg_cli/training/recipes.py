"""Settings of a training run, merged: defaults < recipe < TOML file < options of the command line."""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
import typing
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from rsseg_cli.errors import UsageError
from rsseg_cli.training.config import (
    CLOSER_USE,
    REFINER_TRAINING,
    NetworkSettings,
    RefinerNetworkSettings,
    RefiningConfig,
    TrainConfig,
)

MAX_CONFIG_BYTES = 1_000_000
CROPS = (
    "crop_size", "scales", "mosaic", "turns", "redraw_above", "redraws", "colour", "drawn_share",
    "drawn_scenes",
)  # fmt: skip
LOSSES = ("smoothing", "auxiliary", "heatmaps", "fisher", "fisher_last", "embeddings")
NOT_FOR_REFINERS = (
    "encoder_rate", "schedule", "decay_vectors", "lookahead", "lookahead_alpha", "mosaic", "redraws",
)  # fmt: skip

# Source: arXiv 2512.20255 and its released program. Where neither says anything: Lookahead's k and alpha are
# those of its paper (arXiv 1907.08610), an epoch is one pass over the scenes, gradients are not clipped.
_PUBLISHED = {
    "arch": "paper", "neck": "published", "channels": 256, "encoder_weights": "imagenet", "mean": (),
    "std": (), "epochs": 45, "batch_size": 4, "accumulate": 1, "crop_size": 512, "topk_ratio": 1.0,
    "layers": 2, "weight_decay": 0.01, "decay_vectors": True, "lookahead": 5, "lookahead_alpha": 0.5,
    "schedule": "epoch", "end_rate": 1e-6, "warmup": 0.0, "encoder_rate": 1.0, "ema": 0.0, "clip": 0.0,
    "patience": 0, "crops_per_epoch": "auto", "scales": (0.75, 1.5), "mosaic": 0.25, "turns": True,
    "redraw_above": 0.75, "redraws": 11, "colour": 0.0, "drawn_share": 0.0, "smoothing": 0.05,
    "auxiliary": 0.4, "heatmaps": 0.1, "fisher": 0.1, "fisher_last": 0.0, "embeddings": 0.0,
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


def _names(settings: type, *without: str) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(settings) if item.name not in without)


class RunSettings:
    """Base of all settings of a run: a field for each dataclass in `PARTS`, written by section."""

    PARTS: ClassVar[tuple[type, ...]]
    SECTIONS: ClassVar[Mapping[str, tuple[str, ...]]]
    HAS_RECIPE: ClassVar[bool] = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Folders of the run's stages within its own, in order."""
        return ("",)

    @classmethod
    @functools.cache
    def types(cls) -> dict[str, Any]:
        kinds = ChainMap(*map(typing.get_type_hints, cls.PARTS))
        return {key: kinds[key] for keys in cls.SECTIONS.values() for key in keys}

    def values(self) -> dict[str, dict[str, Any]]:
        flat = ChainMap(*(vars(part) for part in vars(self).values() if isinstance(part, self.PARTS)))
        return {section: {key: flat[key] for key in keys} for section, keys in self.SECTIONS.items()}

    def to_toml(self) -> str:
        """Return a file that `--config` reads back as these settings."""
        sections = {
            section: [f"{key} = {_toml(value)}" for key, value in items.items() if value is not None]
            for section, items in self.values().items()
        }
        parts = ["\n".join([f"[{section}]", *lines]) for section, lines in sections.items()]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    PARTS = (NetworkSettings, TrainConfig)
    SECTIONS: ClassVar = {
        "network": _names(NetworkSettings),
        "training": _names(TrainConfig, *CROPS, *LOSSES),
        "crops": CROPS,
        "losses": LOSSES,
    }
    HAS_RECIPE = True
    recipe: str = "default"
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainConfig = field(default_factory=TrainConfig)

    def to_toml(self) -> str:
        return f"recipe = {_toml(self.recipe)}\n\n{super().to_toml()}"


@dataclass(frozen=True, kw_only=True)
class RefinerSettings(RunSettings):
    PARTS = (RefinerNetworkSettings, TrainConfig, RefiningConfig)
    SECTIONS: ClassVar = {
        "network": _names(RefinerNetworkSettings),
        "training": _names(TrainConfig, *CROPS, *LOSSES, *NOT_FOR_REFINERS),
        "crops": tuple(key for key in CROPS if key not in NOT_FOR_REFINERS),
        "refining": _names(RefiningConfig),
    }
    network: RefinerNetworkSettings = field(default_factory=RefinerNetworkSettings)
    training: TrainConfig = REFINER_TRAINING
    refining: RefiningConfig = field(default_factory=RefiningConfig)

    def __post_init__(self) -> None:
        if self.refining.stage == "refiner" and not self.network.init:
            raise UsageError(
                "--stage refiner: needs a trained codec; pass --init with the first stage's file"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        return ("codec", "refiner") if self.refining.stage == "all" else (self.refining.stage,)


def resolve_settings(
    given: Mapping[str, Any] | None = None, *, recipe: str = "", config: Path | None = None, dataset: str = ""
) -> Settings:
    """Merge defaults, the recipe's settings, the file's, and those given.

    `recipe` is a key of `RECIPES`, or "paper" with a `dataset` that it was published for; "" takes that of
    the file, else "finetune" with a model to start from, else "default".
    """
    from_file = read_config(config) if config else {}
    given = {key: checked(key, value, "option") for key, value in (given or {}).items()}
    own_recipe = from_file.pop("recipe", "")
    init = given.get("init", from_file.get("init", ""))
    name = recipe_name(recipe or own_recipe or ("finetune" if init else "default"), dataset)
    merged = {**RECIPES[name], **from_file, **given}
    _check_start(merged.get("init", ""), given, ("arch", "neck", "layers", "channels"))
    try:
        return Settings(
            recipe=name, network=_part(NetworkSettings, merged), training=_part(TrainConfig, merged)
        )
    except UsageError as err:
        where = f"recipe {name}" + (f" with {config}" if config else "")
        raise UsageError(f"{err} ({where})") from err


def resolve_refiner_settings(
    given: Mapping[str, Any] | None = None, *, config: Path | None = None
) -> RefinerSettings:
    merged = read_config(config, RefinerSettings) if config else {}
    given = {key: checked(key, value, "option", RefinerSettings) for key, value in (given or {}).items()}
    merged |= given
    sizes = _names(
        RefinerNetworkSettings, "init", "closer", *CLOSER_USE, "sd", "align", "encoder_weights", "mean", "std"
    )
    _check_start(merged.get("init", ""), given, sizes)
    return RefinerSettings(
        network=_part(RefinerNetworkSettings, merged),
        training=dataclasses.replace(
            REFINER_TRAINING, **{key: merged[key] for key in _names(TrainConfig) if key in merged}
        ),
        refining=_part(RefiningConfig, merged),
    )


def _part(kind: type, merged: Mapping[str, Any]) -> Any:
    return kind(**{key: merged[key] for key in _names(kind) if key in merged})


def _check_start(init: str, given: Mapping[str, Any], sizes: Iterable[str]) -> None:
    """Refuse sizes together with a model to start from, whose sizes count."""
    wrong = sorted(set(sizes) & given.keys())
    if init and wrong:
        option = wrong[0].replace("_", "-")
        raise UsageError(f"--{option} with --init: the sizes are those of {init}")


def recipe_name(recipe: str, dataset: str) -> str:
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


def read_config(path: Path, kind: type[RunSettings] = Settings) -> dict[str, Any]:
    """Read settings from a TOML file, flat: keys are at its top or in their sections."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are read")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as err:
        raise UsageError(f"{path}: cannot be read as TOML ({err})") from err
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key == "recipe" and kind.HAS_RECIPE and isinstance(value, str):
            values[key] = value
        elif isinstance(value, dict):
            values |= _section(path, key, value, kind)
        else:
            values[key] = checked(key, value, str(path), kind)
    return values


def _section(path: Path, section: str, values: dict[str, Any], kind: type[RunSettings]) -> dict[str, Any]:
    allowed = kind.SECTIONS.get(section)
    if allowed is None:
        raise UsageError(
            f"{path}: section [{section:.80}] is unknown; needs one of {', '.join(kind.SECTIONS)}"
        )
    if wrong := sorted(values.keys() - set(allowed)):
        raise UsageError(f"{path}: [{section}] has no setting {wrong[0]!r:.80}; needs {', '.join(allowed)}")
    return {key: checked(key, value, f"{path}: [{section}]", kind) for key, value in values.items()}


def checked(key: str, value: Any, where: str, kind: type[RunSettings] = Settings) -> Any:
    """Return the value in the setting's type; whole numbers serve as decimal ones, lists as tuples."""
    types = kind.types()
    if key not in types:
        names = ", ".join(["recipe"] * kind.HAS_RECIPE + [*types])
        raise UsageError(f"{where}: unknown setting {key!r:.80}; needs one of {names}")
    try:
        return msgspec.convert(value, types[key])
    except msgspec.ValidationError as err:
        raise UsageError(f"{where}: {key} = {value!r:.80}; needs {_words(types[key])}") from err


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
