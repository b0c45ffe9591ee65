"""`rsseg train`: from images and labels to a model file, a segmentation network's or a refiner's."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.messages import messages, say
from rsseg_cli.data import DataConfig
from rsseg_cli.training import config as kinds

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Train a network.")

Config = Annotated[
    Path | None,
    opt.option(
        "FILE.toml",
        "Settings that replace the defaults; options replace both. Every run writes one: "
        "RUN_DIR/settings.toml.",
    ),
]
Run = Annotated[dict[str, Any], Options(of=(kinds.RunOptions(run_dir=Path()),))]
Info = Annotated[dict[str, Any], Options(of=(kinds.ModelInfo(name=""),))]
REFINER_COURSE = (  # settings of `TrainConfig`
    "epochs crops_per_epoch batch_size accumulate precision learning_rate end_rate warmup weight_decay clip "
    "ema patience tile_size crop_size scales turns redraw_above colour drawn_share drawn_scenes workers seed"
)


@app.callback()
def train() -> None:
    """Train a network on scenes with labels."""


@app.command("bicor-seg")
@from_settings
def train_bicor_seg(
    ctx: typer.Context,
    output: Annotated[Path, opt.option("MODEL.safetensors", "Model file to write.", "-o", "--output")],
    *,
    data: Annotated[DataConfig, Options()],
    recipe: Annotated[
        str,
        opt.option(
            "NAME",
            "Settings to start from: default, finetune, or paper, the published ones of --dataset; for "
            "your own data paper:loveda, paper:vaihingen or paper:potsdam. Default: finetune with --init, "
            "else default, whose values are shown below.",
        ),
    ] = "",
    config: Config = None,
    given: Annotated[dict[str, Any], Options(of=(kinds.NetworkSettings(), kinds.TrainConfig()))],
    run: Run,
    info: Info,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train BiCoR-Seg on a published data set, or on images and labels of your own: folders of pairs, or
    georeferenced scenes with label rasters or polygons.

    The run's folder keeps checkpoints, logs and settings.toml. The result is one model file for rsseg predict
    --model, with a model card beside it.

    Example: rsseg train bicor-seg --data sheets --classes other,building --gsd 0.2 -o roofs.safetensors
    """
    from rsseg_cli.training import resolve_settings
    from rsseg_cli.training import train as run_training

    settings = resolve_settings(given, recipe=recipe, config=config, dataset=data.dataset)
    saved = run_training(
        output,
        replace(data, seed=settings.training.seed),
        settings,
        _run_options(run, info.get("name", output.stem), quiet=quiet),
        kinds.ModelInfo(**{"name": output.stem, "gsd_m": data.gsd_m, **info}),
        show=lambda table: None if quiet else say(table),
        command=_command_line(ctx),
        overwrite=overwrite,
    )
    if saved is None:
        return
    typer.echo(f"{output}: {saved}")
    if "test" in saved.spec.scores:
        typer.echo(f"test mIoU {saved.spec.scores['test']['miou']:.3f}")


@app.command("idgbr")
@from_settings
def train_idgbr(
    ctx: typer.Context,
    output: Annotated[Path, opt.option("REFINER.safetensors", "Model file to write.", "-o", "--output")],
    *,
    coarse: Annotated[
        list[str] | None,
        opt.option(
            "MODEL|FOLDER|GLOB",
            "Coarse maps: a model (name or file) that maps all scenes beforehand, or label rasters "
            "STEM.tif and STEM_*.tif of the images; repeatable. A crop takes one of its scene's maps at "
            "random; validation takes the first, a model's before rasters.",
        ),
    ] = None,
    closer_maps: Annotated[
        list[str] | None,
        opt.option(
            "FOLDER|GLOB",
            "With --closer: class probabilities STEM.tif or STEM_*.tif of all training images, by "
            "models trained without them (rsseg predict --gsd ... --probabilities), instead of the refiner's "
            "own look, which is too good there; repeatable.",
        ),
    ] = None,
    behind: Annotated[
        str, opt.option("NAME", "Model whose maps are refined. Default: the first of --coarse.")
    ] = "",
    data: Annotated[DataConfig, Options()],
    config: Config = None,
    refining: Annotated[dict[str, Any], Options(of=(kinds.RefiningConfig(),))],
    network: Annotated[dict[str, Any], Options(of=(kinds.RefinerNetworkSettings(),))],
    course: Annotated[dict[str, Any], Options(REFINER_COURSE, of=(kinds.REFINER_TRAINING,))],
    run: Run,
    info: Info,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train an IDGBR refiner, which moves the boundaries of a coarse map to those of the image: first its
    label embedding and codec, then denoiser and guidance.

    A model maps the scenes that it was trained on too well. Out-of-fold maps are better: train the model on
    one half of the scenes (rsseg train bicor-seg --val ...), map the other half with rsseg predict -o
    maps/STEM.tif, and the reverse; then pass --coarse maps. Both kinds are degraded at random in training
    (--degrade).

    The run's folder keeps checkpoints and logs of both stages and settings.toml.

    Example: rsseg train idgbr --data sheets --classes other,building --gsd 0.1 --coarse maps -o r.safetensors
    """
    from rsseg_cli.training import resolve_refiner_settings, train_refiner

    settings = resolve_refiner_settings({**refining, **network, **course}, config=config)
    saved = train_refiner(
        output,
        replace(data, seed=settings.training.seed),
        settings,
        _run_options(run, info.get("name", output.stem), quiet=quiet),
        kinds.ModelInfo(**{"name": output.stem, "gsd_m": data.gsd_m, **info}),
        coarse=coarse or (),
        closer_maps=closer_maps or (),
        base_model=behind,
        show=lambda table: None if quiet else say(table),
        command=_command_line(ctx),
        overwrite=overwrite,
    )
    if saved is not None:
        typer.echo(f"{output}: {saved}")


def _run_options(given: dict[str, Any], name: str, *, quiet: bool) -> kinds.RunOptions:
    """Complete what was given: a bar on a terminal, lines elsewhere, nothing with --quiet."""
    hidden = quiet or messages().form == "off"
    show: kinds.Show = "none" if hidden else "bar" if sys.stderr.isatty() else "lines"
    return kinds.RunOptions(**{"run_dir": Path("runs") / name, "show": show, **given})


def _command_line(context: typer.Context) -> str:
    """The command with the options that were given, as a shell takes it."""
    return shlex.join(["rsseg", "train", context.info_name or "bicor-seg", *_words(context)])


def _words(context: typer.Context) -> Iterator[str]:
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in ("resume", "overwrite"):
            continue
        value, flag = context.params[name], max(parameter.opts, key=len)
        if isinstance(value, bool):
            yield flag if value else max(parameter.secondary_opts, key=len)
            continue
        for item in value if isinstance(value, list) else [value]:
            yield from (flag, *map(str, item if isinstance(item, tuple) else (item,)))
