"""`rsseg train`: from images and labels to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import data_options
from rsseg_cli.cli import train_options as opt
from rsseg_cli.cli.train_idgbr import train_idgbr

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Train a network.")


@app.callback()
def train() -> None:
    """Train a network on scenes with labels."""


@app.command("bicor-seg")
def train_bicor_seg(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL.safetensors", help="Model file to write.")
    ],
    dataset: data_options.Dataset = "",
    root: data_options.Root = None,
    domains: data_options.Domains = data_options.DOMAINS,
    bands: data_options.Bands = "",
    data: data_options.Data = None,
    images: data_options.Images = data_options.IMAGES,
    masks: data_options.Masks = data_options.MASKS,
    scenes: data_options.Scenes = None,
    val: data_options.Val = None,
    test: data_options.Test = None,
    val_share: data_options.ValShare = data_options.VAL_SHARE,
    classes: data_options.Classes = "",
    label_field: data_options.LabelField = "",
    vector_class: data_options.VectorClass = "",
    outside: data_options.Outside = "",
    gsd: data_options.Gsd = None,
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
    """Train BiCoR-Seg on a published data set, or on images and labels of your own: folders of pairs, or
    georeferenced scenes with label rasters or polygons.

    The run's folder keeps checkpoints, logs and settings.toml; the end is one model file for rsseg predict
    --model, with a model card beside it.

    Example: rsseg train bicor-seg --data sheets --classes other,building --gsd 0.2 -o roofs.safetensors
    """
    import logging

    from rsseg_cli.training import config as kinds
    from rsseg_cli.training import resolve_settings
    from rsseg_cli.training import train as run_training

    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    given = opt.given_settings(ctx.params)
    settings = resolve_settings(given, recipe=recipe, config=config, dataset=dataset)
    info = kinds.ModelInfo(
        name=name or output.stem, gsd_m=gsd, gsd_range_m=gsd_range, description=description,
        license=license_, data=data_note,
    )  # fmt: skip
    saved = run_training(
        output,
        data_options.data_config(
            dataset=dataset, root=root, domains=domains, data=data, images=images, masks=masks, bands=bands,
            scenes=scenes, val=val, test=test, val_share=val_share, classes=classes, label_field=label_field,
            vector_class=vector_class, outside=outside, gsd=gsd, seed=settings.training.seed,
        ),
        settings,
        kinds.RunOptions(
            run_dir=run_dir or Path("runs") / info.name, device=device, devices=devices, num_nodes=num_nodes,
            strategy=strategy, resume=resume, show=opt.progress_kind(quiet),
        ),
        info,
        show=lambda table: None if quiet else typer.echo(table, err=True),
        command=opt.command_line(ctx),
        overwrite=overwrite,
    )  # fmt: skip
    if saved is None:
        return
    typer.echo(f"{output}: {saved}")
    if "test" in saved.spec.scores:
        typer.echo(f"test mIoU {saved.spec.scores['test']['miou']:.3f}")


app.command("idgbr")(train_idgbr)
