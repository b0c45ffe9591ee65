"""Options of `rsseg train`: one for each setting, in groups.

Their defaults are told, not set, so that a recipe and a TOML file can go before them.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rsseg_cli.errors import UsageError
from rsseg_cli.training import config as kinds

if TYPE_CHECKING:
    from rsseg_cli.training import config as kinds

RUN = kinds.TrainConfig()
NET = kinds.NetworkSettings()
SETTINGS = (*vars(RUN), *vars(NET))
LISTS: tuple[tuple[str, type[int] | type[float], str], ...] = (
    ("mean", float, "0.5,0.5,0.5"),
    ("std", float, "0.5,0.5,0.5"),
    ("widths", int, "32,64,128"),
    ("coarse_gsds", float, "1,1.4"),
)  # fmt: skip; settings that are given as numbers between commas, and an example


def _of(value: Any) -> str:
    """A default as an option's help tells it."""
    if isinstance(value, bool):
        return "Default: on." if value else "Default: off."
    shown = " ".join(f"{item:g}" for item in value) if isinstance(value, tuple) else f"{value}"
    return f"Default: {shown}."


# settings as a whole
Recipe = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Settings to start from: default, finetune, or paper, the published ones of --dataset; for "
        "your own data paper:loveda, paper:vaihingen or paper:potsdam. Default: finetune with --init, else "
        "default, whose values are told below.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Settings over the recipe's; options go before it. Every run writes one: RUN_DIR/settings.toml.",
    ),
]

# the network
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="lite|paper|ENCODER", help=f"Size: lite, published, or a timm encoder. {_of(NET.arch)}"
    ),
]
Neck = Annotated[
    str | None,
    typer.Option(
        metavar="published|conv", help="How scales are joined. Default: conv for lite, else published."
    ),
]
Layers = Annotated[int | None, typer.Option(metavar="N", help=f"HBIS layers. {_of(NET.layers)}")]
TopkRatio = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help=f"Pixels that update a class, above 0, to 1. {_of(NET.topk_ratio)}"),
]
Channels = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Width of features and class embeddings, times 16. Default: 128 for lite, else 256."
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH",
        help="Fine-tune a model: its sizes, bands and resolution; classes of the same name keep what they "
        "know.",
    ),
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        metavar="imagenet|none|FILE",
        help=f"Start of the encoder; imagenet for lite needs rsseg[train]. {_of(NET.encoder_weights)}",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="X,Y,Z", help="Mean of each band, scaled to 0-1. Default: ImageNet's."),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="X,Y,Z", help="Standard deviation of each band. Default: ImageNet's."),
]

# the course of training
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help=f"Passes over the crops, a validation after each. {_of(RUN.epochs)}"),
]
CropsPerEpoch = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help=f"Random crops an epoch; auto: as many as fill the training scenes. {_of(RUN.crops_per_epoch)}",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help=f"Crops a device takes at once. {_of(RUN.batch_size)}")
]
Accumulate = Annotated[
    int | None,
    typer.Option(metavar="N", help=f"Batches whose gradients make one step. {_of(RUN.accumulate)}"),
]
Precision = Annotated[
    Literal["auto", "32", "bf16", "16"] | None,
    typer.Option(help=f"Arithmetic; auto is bf16 on CUDA that has it, else 32. {_of(RUN.precision)}"),
]
Lr = Annotated[
    float | None,
    typer.Option("--lr", metavar="RATE", help=f"Highest learning rate of the head. {_of(RUN.learning_rate)}"),
]
EndRate = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="Rate that the cosine ends at. Default: a hundredth of --lr."),
]
EncoderRate = Annotated[
    float | None,
    typer.Option(metavar="X", help=f"The encoder's rate, times the head's. {_of(RUN.encoder_rate)}"),
]
Schedule = Annotated[
    Literal["step", "epoch"] | None,
    typer.Option(help=f"When the rate changes: after each. {_of(RUN.schedule)}"),
]
Warmup = Annotated[
    float | None, typer.Option(metavar="SHARE", help=f"Of the run, with a rising rate. {_of(RUN.warmup)}")
]
WeightDecay = Annotated[float | None, typer.Option(metavar="X", help=f"Of AdamW. {_of(RUN.weight_decay)}")]
DecayVectors = Annotated[
    bool | None,
    typer.Option(
        "--decay-vectors/--no-decay-vectors",
        help=f"Decay norms and biases too, not only kernels. {_of(RUN.decay_vectors)}",
    ),
]
Lookahead = Annotated[
    int | None,
    typer.Option(
        metavar="K", help=f"Steps between Lookahead's averages; 0 is AdamW alone. {_of(RUN.lookahead)}"
    ),
]
LookaheadAlpha = Annotated[
    float | None, typer.Option(metavar="SHARE", help=f"Lookahead's step, 0 to 1. {_of(RUN.lookahead_alpha)}")
]
Clip = Annotated[
    float | None,
    typer.Option(metavar="X", help=f"Largest norm of a gradient; 0 does not clip. {_of(RUN.clip)}"),
]
Ema = Annotated[
    float | None, typer.Option(metavar="X", help=f"Decay of averaged weights; 0 turns it off. {_of(RUN.ema)}")
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"Stop after N epochs without a better validation mIoU; 0 never does. {_of(RUN.patience)}",
    ),
]
TileSize = Annotated[
    int | None, typer.Option(metavar="PX", help=f"Side of validation tiles. {_of(RUN.tile_size)}")
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help=f"Processes that prepare crops; 0: the training process itself. {_of(RUN.workers)}"
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help=f"Of everything random. {_of(RUN.seed)}")]

# crops
CropSize = Annotated[
    int | None, typer.Option(metavar="PX", help=f"Side of a crop: a multiple of 64. {_of(RUN.crop_size)}")
]
Scales = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="MIN MAX", help=f"Smallest and largest random scale. {_of(RUN.scales)}"),
]
Mosaic = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help=f"Crops put together from four, 0 to 1. {_of(RUN.mosaic)}"),
]
Turns = Annotated[
    bool | None, typer.Option("--turns/--no-turns", help=f"Flips and quarter turns. {_of(RUN.turns)}")
]
RedrawAbove = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help=f"Draw a crop again while one class fills more of it. {_of(RUN.redraw_above)}"
    ),
]
Redraws = Annotated[int | None, typer.Option(metavar="N", help=f"Most draws of a crop. {_of(RUN.redraws)}")]
Colour = Annotated[
    float | None,
    typer.Option(metavar="X", help=f"Strength of colour augmentation; 0 turns it off. {_of(RUN.colour)}"),
]
DrawnShare = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help=f"Crops of drawn scenes, below 1; classes match by name. {_of(RUN.drawn_share)}"
    ),
]
DrawnScenes = Annotated[
    int | None, typer.Option(metavar="N", help=f"Scenes drawn for --drawn-share. {_of(RUN.drawn_scenes)}")
]

# losses
Smoothing = Annotated[
    float | None, typer.Option(metavar="X", help=f"Label smoothing, 0 to 1. {_of(RUN.smoothing)}")
]
Auxiliary = Annotated[
    float | None, typer.Option(metavar="X", help=f"Weight of the auxiliary head's loss. {_of(RUN.auxiliary)}")
]
Heatmaps = Annotated[
    float | None, typer.Option(metavar="X", help=f"Weight of each layer's heatmap loss. {_of(RUN.heatmaps)}")
]
Fisher = Annotated[
    float | None, typer.Option(metavar="X", help=f"Weight of each layer's Fisher loss. {_of(RUN.fisher)}")
]
FisherLast = Annotated[
    float | None,
    typer.Option(
        metavar="X", help=f"Weight of one more Fisher loss on the last layer. {_of(RUN.fisher_last)}"
    ),
]

# the machine and the run
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Devices = Annotated[
    str,
    typer.Option(metavar="N|0,1|auto", help="How many, which, or all; each takes --batch-size crops a step."),
]
NumNodes = Annotated[int, typer.Option(metavar="N", min=1, help="Machines that take part.")]
Strategy = Annotated[str, typer.Option(metavar="NAME", help="Lightning's, such as ddp; auto suits most.")]
RunDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Checkpoints, logs and settings.toml. Default: runs/NAME."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the run's last finished epoch, to the same result.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output and the run in --run-dir.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]

# the model file
Name = Annotated[str, typer.Option(metavar="NAME", help="The model's name. Default: the output's.")]
Description = Annotated[str, typer.Option(metavar="TEXT", help="One line for the model card.")]
License = Annotated[
    str, typer.Option("--license", metavar="TEXT", help="Licence of the weights, for the card.")
]
DataNote = Annotated[str, typer.Option(metavar="TEXT", help="Source and licence of the data, for the card.")]


def given_settings(params: dict[str, Any], known: Iterable[str] = SETTINGS) -> dict[str, Any]:
    """Settings that were given as options, in the types of the settings.

    Args:
        params: option -> value, None where it was not given.
        known: names of the settings.
    """
    given = {key: params[key] for key in known if params.get(key) is not None}
    for option, key in (("lr", "learning_rate"), ("codec_lr", "codec_rate")):
        if params.get(option) is not None:
            given[key] = params[option]
    crops = given.get("crops_per_epoch", "auto")
    if crops != "auto":
        if not crops.isdecimal():
            raise UsageError(f"--crops-per-epoch {crops}: needs a whole number or auto")
        given["crops_per_epoch"] = int(crops)
    for key, kind, shown in LISTS:
        if key in given:
            try:
                given[key] = tuple(kind(part) for part in given[key].split(","))
            except ValueError as err:
                option = key.replace("_", "-")
                raise UsageError(f"--{option} {given[key]}: needs numbers such as {shown}") from err
    return given


def command_line(context: typer.Context) -> str:
    """The command with the options that were given, as a shell takes it."""
    words = ["rsseg", "train", context.info_name or "bicor-seg"]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or parameter.name in ("resume", "overwrite"):
            continue
        value = context.params[parameter.name or ""]
        values = value if isinstance(value, list) else [value]
        for item in values:
            words += _words(parameter, item)
    return shlex.join(words)


def _words(parameter: Any, value: Any) -> list[str]:
    option = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return [option if value else max(parameter.secondary_opts, key=len)]
    return [option, *map(str, value)] if isinstance(value, tuple) else [option, str(value)]


def progress_kind(quiet: bool) -> kinds.Show:
    """A bar on a terminal, lines elsewhere, nothing where quiet."""
    if quiet:
        return "none"
    return "bar" if sys.stderr.isatty() else "lines"
