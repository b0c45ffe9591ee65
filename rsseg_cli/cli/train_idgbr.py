"""`rsseg train idgbr`: from images, labels and rough maps to a refiner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rsseg_cli.cli import data_options
from rsseg_cli.cli import train_options as opt
from rsseg_cli.training import config as kinds

HOW = kinds.RefiningConfig()
Number = Annotated[int | None, typer.Option(metavar="N", help="Of --arch lite. Default: its own.")]


def train_idgbr(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="REFINER.safetensors", help="Model file to write.")
    ],
    coarse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL|FOLDER|GLOB",
            help="Rough maps: a model (name or file) that maps all scenes beforehand, or label rasters "
            "STEM.tif and STEM_*.tif of the images; repeatable. A crop takes one of its scene's maps at "
            "random; validation takes the first, a model's before rasters.",
        ),
    ] = None,
    closer_maps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|GLOB",
            help="With --closer: class probabilities STEM.tif or STEM_*.tif of all training images, by "
            "models that were trained without them (rsseg predict --gsd ... --probabilities), in place of "
            "the refiner's own look, which is too good there; repeatable.",
        ),
    ] = None,
    behind: Annotated[
        str,
        typer.Option(metavar="NAME", help="Model whose maps are refined. Default: the first of --coarse."),
    ] = "",
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
    config: opt.Config = None,
    stage: Annotated[
        Literal["all", "codec", "refiner"] | None,
        typer.Option(
            help="Train label embedding and codec, or denoiser and guidance (with --init), or one after the "
            "other. Default: all."
        ),
    ] = None,
    arch: Annotated[
        Literal["lite", "paper"] | None,
        typer.Option(help="Size: for two cores, or Stable Diffusion 1.5's. Default: lite."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Fine-tune a refiner: its sizes, classes and resolution."),
    ] = None,
    closer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="BiCoR-Seg model, name or file, that lite carries along to look at the image once more at "
            "its own resolution; encoder and its weights are that model's. Default: none.",
        ),
    ] = None,
    sd: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Stable Diffusion 1.5 in diffusers' layout, to start paper from."),
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="DINOv2 (timm's vit_small_patch14_dinov2, safetensors) that paper's features are aligned to "
            "in the first steps.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Image encoder of lite, frozen, of timm. Default: EfficientNet-Lite0."
        ),
    ] = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(
            metavar="imagenet|none|MODEL|FILE",
            help="Of lite's encoder, MODEL those of a segmentation model; imagenet for lite's own needs "
            "rsseg[train]. Default: imagenet.",
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Channels of lite at strides 4, 8 and 16. Default: its own."),
    ] = None,
    middle: Number = None,
    window_px: Number = None,
    latent_channels: Number = None,
    codec_channels: Number = None,
    noise: Annotated[
        float | None, typer.Option(metavar="X", help="Of lite, at the sampler's start. Default: its own.")
    ] = None,
    band_px: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Of lite, where the loss counts in full. Default: its own."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Of the sampler. Default: the arch's.")
    ] = None,
    time_sampling: Annotated[
        Literal["cubic", "uniform"] | None,
        typer.Option(help="Of training; cubic favours noisy steps. Default: the arch's."),
    ] = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    degrade: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help=f"Crops whose rough map is made worse: moved, bent, blunted. Default: {HOW.degrade}.",
        ),
    ] = None,
    degrade_px: Annotated[
        int | None,
        typer.Option(metavar="PX", help=f"Farthest a boundary is moved so. Default: {HOW.degrade_px}."),
    ] = None,
    from_labels: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help=f"Crops whose rough map is the labels, made worse. Default: {HOW.from_labels}.",
        ),
    ] = None,
    coarse_gsds: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Times its own resolution at which a --coarse model maps training scenes, for as many "
            "versions. Default: 1,1.4.",
        ),
    ] = None,
    band_m: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help=f"Distance from boundaries within which labels may change. Default: {HOW.band_m}.",
        ),
    ] = None,
    val_tiles: Annotated[
        int | None, typer.Option(metavar="N", help=f"Most validation tiles. Default: {HOW.val_tiles}.")
    ] = None,
    codec_epochs: Annotated[
        int | None, typer.Option(metavar="N", help=f"Of the first stage. Default: {HOW.codec_epochs}.")
    ] = None,
    codec_lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help=f"Highest, of the first stage. Default: {HOW.codec_rate}."),
    ] = None,
    random_maps: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help=f"Drawn label maps in the first stage. Default: {HOW.random_maps}."
        ),
    ] = None,
    epochs: opt.Epochs = None,
    crops_per_epoch: opt.CropsPerEpoch = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help=f"Crops a device takes at once. Default: {kinds.REFINER_TRAINING.batch_size}."
        ),
    ] = None,
    accumulate: opt.Accumulate = None,
    precision: opt.Precision = None,
    lr: opt.Lr = None,
    end_rate: opt.EndRate = None,
    warmup: opt.Warmup = None,
    weight_decay: opt.WeightDecay = None,
    clip: opt.Clip = None,
    ema: opt.Ema = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stop after N epochs that are no better; 0 never does. Default: 0."),
    ] = None,
    tile_size: opt.TileSize = None,
    crop_size: opt.CropSize = None,
    scales: opt.Scales = None,
    turns: opt.Turns = None,
    redraw_above: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Draw a crop again while one class fills more of it. Default: "
            f"{kinds.REFINER_TRAINING.redraw_above}.",
        ),
    ] = None,
    colour: opt.Colour = None,
    drawn_share: opt.DrawnShare = None,
    drawn_scenes: opt.DrawnScenes = None,
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
    """Train an IDGBR refiner, which moves the boundaries of a rough map onto the image's: first its label
    embedding and codec, then denoiser and guidance.

    A model maps scenes that it was trained on too well. Better than its own maps are out-of-fold ones: train
    the model on one half of the scenes (rsseg train bicor-seg --val ...), map the other half with rsseg
    predict -o maps/STEM.tif, and the reverse; then pass --coarse maps. Both kinds are made worse at random as
    crops are drawn (--degrade).

    The run's folder keeps checkpoints and logs of both stages and settings.toml.

    Example: rsseg train idgbr --data sheets --classes other,building --gsd 0.1 --coarse maps -o r.safetensors
    """
    import logging

    from rsseg_cli.training import config as kinds
    from rsseg_cli.training import refiner_setting_types, resolve_refiner_settings, train_refiner

    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    given = opt.given_settings(ctx.params, refiner_setting_types())
    settings = resolve_refiner_settings(given, config=config)
    info = kinds.ModelInfo(
        name=name or output.stem, gsd_m=gsd, gsd_range_m=gsd_range, description=description,
        license=license_, data=data_note,
    )  # fmt: skip
    saved = train_refiner(
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
        coarse=coarse or (),
        closer_maps=closer_maps or (),
        behind=behind,
        show=lambda table: None if quiet else typer.echo(table, err=True),
        command=opt.command_line(ctx),
        overwrite=overwrite,
    )  # fmt: skip
    if saved is not None:
        typer.echo(f"{output}: {saved}")
