"""`rsseg train`: from images and labels to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsseg_cli.cli import train_options as opt

if TYPE_CHECKING:
    from rsseg_cli.train_progress import Show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a network.")


@app.callback()
def train() -> None:
    """Train a network on scenes with labels."""


@app.command("bicor-seg")
def train_bicor_seg(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL.safetensors", help="Model file to write.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Folder with images and masks of the same names; repeatable."),
    ] = None,
    dataset: Annotated[str, typer.Option(metavar="NAME", help="loveda, vaihingen or potsdam.")] = "",
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of --dataset.")] = None,
    images: Annotated[str, typer.Option(metavar="GLOB", help="Images inside --data.")] = "images/*",
    masks: Annotated[
        str, typer.Option(metavar="GLOB", help="Masks inside --data: class numbers, 255 unlabelled.")
    ] = "masks/*",
    scenes: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="LIST.csv",
            help="Columns image, labels, split (train, val, test); paths from its folder; repeatable.",
        ),
    ] = None,
    val: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names held out to choose the epoch; repeatable.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Names scored at the end, never trained on; repeatable."),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(
            metavar="A,B,C|FILE.json",
            help="Names in the order of the labels, or a JSON list of name and colour.",
        ),
    ] = "",
    gsd: Annotated[
        float | None,
        typer.Option(
            metavar="M", help="Ground resolution to train at, metres a pixel. Default: the first scene's."
        ),
    ] = None,
    gsd_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="MIN MAX",
            help="Resolutions run without resampling, metres a pixel. Default: --gsd over --scales.",
        ),
    ] = None,
    recipe: opt.Recipe = "",
    config: opt.Config = None,
    arch: opt.Arch = None,
    neck: opt.Neck = None,
    layers: opt.Layers = None,
    topk_ratio: opt.TopkRatio = None,
    channels: opt.Channels = None,
    init: opt.Init = None,
    encoder_weights: opt.EncoderWeights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    epochs: opt.Epochs = None,
    crops_per_epoch: opt.CropsPerEpoch = None,
    batch_size: opt.BatchSize = None,
    accumulate: opt.Accumulate = None,
    precision: opt.Precision = None,
    lr: opt.Lr = None,
    end_rate: opt.EndRate = None,
    encoder_rate: opt.EncoderRate = None,
    schedule: opt.Schedule = None,
    warmup: opt.Warmup = None,
    weight_decay: opt.WeightDecay = None,
    decay_vectors: opt.DecayVectors = None,
    lookahead: opt.Lookahead = None,
    lookahead_alpha: opt.LookaheadAlpha = None,
    clip: opt.Clip = None,
    ema: opt.Ema = None,
    patience: opt.Patience = None,
    tile_size: opt.TileSize = None,
    crop_size: opt.CropSize = None,
    scales: opt.Scales = None,
    mosaic: opt.Mosaic = None,
    turns: opt.Turns = None,
    redraw_above: opt.RedrawAbove = None,
    redraws: opt.Redraws = None,
    colour: opt.Colour = None,
    drawn_share: opt.DrawnShare = None,
    drawn_scenes: opt.DrawnScenes = None,
    smoothing: opt.Smoothing = None,
    auxiliary: opt.Auxiliary = None,
    heatmaps: opt.Heatmaps = None,
    fisher: opt.Fisher = None,
    fisher_last: opt.FisherLast = None,
    workers: opt.Workers = None,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    devices: opt.Devices = "1",
    num_nodes: opt.NumNodes = 1,
    strategy: opt.Strategy = "auto",
    name: opt.Name = "",
    description: opt.Description = "",
    license_: opt.License = "",
    data_note: opt.DataNote = "",
    run_dir: opt.RunDir = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train BiCoR-Seg on folders of images and masks, or on georeferenced scenes with label rasters.

    Example: rsseg train bicor-seg --data sheets --classes other,building --val 'north*' -o roofs.safetensors
    """
    import logging

    from rsseg_cli import training
    from rsseg_cli.datasets import DataConfig, found_table, open_data
    from rsseg_cli.recipes import resolve_settings
    from rsseg_cli.starting import build_network, describe_model
    from rsseg_cli.trainer import RunOptions, environment_rank
    from rsseg_cli.weights.registry import check_target, read_spec

    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.WARNING)
    given = opt.given_settings(ctx.params)
    settings = resolve_settings(given, recipe=recipe, config=config, dataset=dataset)
    start = settings.network
    check_target(output, overwrite)
    init_spec = read_spec(start.init) if start.init else None
    found = open_data(
        DataConfig(
            dataset=dataset, root=root, folders=tuple(data or ()), images=images, masks=masks,
            scenes=tuple(scenes or ()), val=tuple(val or ()), test=tuple(test or ()), classes=classes,
            bands=init_spec.bands if init_spec and not dataset else (), gsd_m=gsd,
            seed=settings.training.seed,
        ),
        default_classes=init_spec.classes if init_spec else (),
    )  # fmt: skip
    spec = describe_model(
        settings,
        name=name or output.stem,
        data=found,
        gsd_m=gsd,
        gsd_range_m=gsd_range,
        texts={"description": description, "license": license_, "data": data_note},
    )
    run = RunOptions(
        run_dir=run_dir or Path("runs") / spec.name,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        resume=resume,
        show=progress_kind(quiet),
    )
    is_main = environment_rank() == 0
    if is_main:
        training.save_settings(run.run_dir, settings, resume=resume, overwrite=overwrite)
    training.keep_freed_memory()
    network, spec = build_network(
        spec, init=start.init, encoder_weights=start.encoder_weights, seed=settings.training.seed
    )
    with training.scene_folder(run.run_dir) as folder:
        loaded = training.load_training_scenes(found, spec, settings.training, folder)
        tests = [source.load(spec, folder) for source in found.split("test")]
        table = found_table({**loaded._asdict(), "test": tests}, spec.class_names)
        if is_main and not quiet:
            typer.echo(table, err=True)
        result = training.train(network, spec, loaded, settings.training, run, found.protocol)
        if not result.is_main:
            return
        saved = training.finish(
            network, spec, settings, result, tests, output, protocol=found.protocol, found=table,
            command=opt.command_line(ctx), overwrite=overwrite,
        )  # fmt: skip
    typer.echo(
        f"{output}: validation mIoU {result.val_miou:.3f} at epoch {result.epoch} of {len(result.history)}"
    )
    if "test" in saved.scores:
        typer.echo(f"test mIoU {saved.scores['test']['miou']:.3f}")


def progress_kind(quiet: bool) -> Show:
    """A bar on a terminal, lines elsewhere, nothing where quiet."""
    import sys

    if quiet:
        return "none"
    return "bar" if sys.stderr.isatty() else "lines"
