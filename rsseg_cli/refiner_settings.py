"""Settings of a refiner's training run, put together: defaults < TOML file < options of the command line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsseg_cli.errors import UsageError
from rsseg_cli.recipes import Known, checked, read_config, toml_lines
from rsseg_cli.train_config import (
    REFINER_TRAINING,
    RefinerNetworkSettings,
    RefiningConfig,
    TrainConfig,
)

SECTIONS = {
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
        network: sizes and start of the network.
        training: of the second stage; the first takes them but for epochs and rate.
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
        """Section -> key -> value, in the order of `SECTIONS`."""
        flat = vars(self.network) | vars(self.training) | vars(self.refining)
        return {section: {key: flat[key] for key in keys} for section, keys in SECTIONS.items()}

    def to_toml(self) -> str:
        """As `Settings.to_toml`."""
        return "\n".join(toml_lines(self.values())[1:]) + "\n"


def setting_types() -> dict[str, Any]:
    """Setting -> its type."""
    parts = (RefinerNetworkSettings, TrainConfig, RefiningConfig)
    kinds = {key: kind for part in parts for key, kind in typing.get_type_hints(part).items()}
    return {key: kinds[key] for keys in SECTIONS.values() for key in keys}


KNOWN = Known(SECTIONS, setting_types(), recipes=False)


def resolve_refiner_settings(
    given: Mapping[str, Any] | None = None, *, config: Path | None = None
) -> RefinerSettings:
    """Settings of a refiner's run: defaults, then the file's, then those given.

    Raises:
        UsageError: an unknown key, a wrong type, a value out of bounds.
    """
    merged = read_config(config, KNOWN) if config else {}
    merged |= {key: checked(key, value, "option", KNOWN) for key, value in (given or {}).items()}
    course = _of(merged, SECTIONS["training"] + SECTIONS["crops"])
    return RefinerSettings(
        network=RefinerNetworkSettings(**_of(merged, SECTIONS["network"])),
        training=dataclasses.replace(REFINER_TRAINING, **course),
        refining=RefiningConfig(**_of(merged, SECTIONS["refining"])),
    )


def _of(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
