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
    import copy
    import logging

    from rsseg_cli.config import PredictConfig
    from rsseg_cli.data.datasets import found_table, open_data
    from rsseg_cli.evaluation.evaluate_model import evaluate
    from rsseg_cli.training import train_model as training
    from rsseg_cli.training.recipes import resolve_settings
    from rsseg_cli.training.start import build_network, describe_model
    from rsseg_cli.training.trainer import RunOptions, environment_rank
    from rsseg_cli.weights import TrainedModel, read_spec, registry

    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    given = opt.given_settings(ctx.params)
    settings = resolve_settings(given, recipe=recipe, config=config, dataset=dataset)
    start = settings.network
    opt.check_start(start.init, given)
    registry.check_target(output, overwrite)
    init_spec = read_spec(start.init) if start.init else None
    found = open_data(
        data_options.data_config(
            dataset=dataset, root=root, domains=domains, data=data, images=images, masks=masks,
            bands=bands or (",".join(init_spec.bands) if init_spec and not dataset else ""), scenes=scenes,
            val=val, test=test, val_share=val_share, classes=classes, label_field=label_field,
            vector_class=vector_class, outside=outside, gsd=gsd, seed=settings.training.seed,
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
        show=opt.progress_kind(quiet),
    )
    is_main = environment_rank() == 0
    if is_main:
        training.check_run(run.run_dir, resume=resume, overwrite=overwrite)
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
        if is_main:
            training.save_settings(run.run_dir, settings, resume=resume)
        result = training.train(network, spec, loaded, settings.training, run, found.protocol)
    if not result.is_main:
        return
    training.as_stored(network)
    scored = None
    if found.split("test"):
        scored = evaluate(
            TrainedModel(copy.deepcopy(network), spec),
            found,
            "test",
            config=PredictConfig(device=device),
            places=False,
        ).result.confusion
    saved = training.finish(
        network, spec, settings, result, scored, output, protocol=found.protocol, found=table,
        command=opt.command_line(ctx), overwrite=overwrite,
    )  # fmt: skip
    typer.echo(
        f"{output}: validation mIoU {result.score:.3f} at epoch {result.epoch} of {len(result.history)}"
    )
    if "test" in saved.scores:
        typer.echo(f"test mIoU {saved.scores['test']['miou']:.3f}")


app.command("idgbr")(train_idgbr)
