"""`rsseg train`: from images and labels to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsseg_cli.errors import DataError, UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a network.")


@app.callback()
def train() -> None:
    """Train a network on scenes with labels."""


@app.command("bicor-seg")
def train_bicor_seg(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL.safetensors", help="Model file to write.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Folder with images and masks of the same names; repeatable."),
    ] = None,
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
    arch: Annotated[
        str, typer.Option(metavar="lite|paper|ENCODER", help="lite, the published size, or any timm encoder.")
    ] = "lite",
    neck: Annotated[
        str,
        typer.Option(
            metavar="published|conv", help="How scales are joined. Default: conv for lite, else published."
        ),
    ] = "",
    layers: Annotated[int, typer.Option(metavar="N", help="HBIS layers.")] = 2,
    topk_ratio: Annotated[
        float, typer.Option(metavar="SHARE", help="Pixels that update a class, above 0, to 1.")
    ] = 1.0,
    init: Annotated[str, typer.Option(metavar="NAME|PATH", help="Start from a model, with its sizes.")] = "",
    encoder_weights: Annotated[
        str,
        typer.Option(
            metavar="imagenet|none|FILE.pth",
            help="Start of the encoder; imagenet for lite needs rsseg[train].",
        ),
    ] = "imagenet",
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
    epochs: Annotated[
        int, typer.Option(metavar="N", help="Passes over the crops, a validation after each.")
    ] = 30,
    crops_per_epoch: Annotated[int, typer.Option(metavar="N", help="Random crops an epoch.")] = 800,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Crops a step.")] = 4,
    crop_size: Annotated[int, typer.Option(metavar="PX", help="Side of a crop: a multiple of 64.")] = 256,
    scales: Annotated[
        tuple[float, float], typer.Option(metavar="MIN MAX", help="Smallest and largest random scale.")
    ] = (
        0.75,
        1.5,
    ),
    mosaic: Annotated[
        float, typer.Option(metavar="SHARE", help="Crops put together from four, 0 to 1.")
    ] = 0.25,
    colour: Annotated[
        float, typer.Option(metavar="X", help="Strength of colour augmentation; 0 turns it off.")
    ] = 1.0,
    drawn_share: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Crops from drawn scenes, 0 up to 1; classes match by name."),
    ] = 0.0,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Highest learning rate of the head.")] = 1e-3,
    encoder_rate: Annotated[
        float, typer.Option(metavar="X", help="The encoder's rate, times the head's.")
    ] = 0.3,
    ema: Annotated[
        float, typer.Option(metavar="X", help="Decay of averaged weights; 0 turns it off.")
    ] = 0.99,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    workers: Annotated[
        int,
        typer.Option(metavar="N", help="Processes that prepare crops; 0 leaves it to the training process."),
    ] = 0,
    name: Annotated[str, typer.Option(metavar="NAME", help="The model's name. Default: the output's.")] = "",
    description: Annotated[str, typer.Option(metavar="TEXT", help="One line for the model card.")] = "",
    license_: Annotated[
        str, typer.Option("--license", metavar="TEXT", help="Licence of the weights, for the card.")
    ] = "",
    data_note: Annotated[
        str, typer.Option(metavar="TEXT", help="Source and licence of the data, for the card.")
    ] = "",
    run_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Checkpoints and log. Default: runs/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last epoch.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train BiCoR-Seg on folders of images and masks, or on georeferenced scenes with label rasters.

    Example: rsseg train bicor-seg --data sheets --classes other,building --val 'north*' -o roofs.safetensors
    """
    if not data and not scenes:
        raise UsageError("nothing to train on: pass --data FOLDER or --scenes LIST.csv")
    import logging
    import sys

    from rsseg_cli import datasets, training
    from rsseg_cli.models.bicor_seg import BicorSegConfig
    from rsseg_cli.weights import ModelSpec
    from rsseg_cli.weights.registry import check_target

    check_target(output, overwrite)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    training.keep_freed_memory()
    found = [scene for path in scenes or () for scene in datasets.read_scene_list(path)]
    for folder in data or ():
        found += datasets.find_scenes(folder, images=images, masks=masks, val=val or (), test=test or ())
    class_specs = read_classes(classes, init)
    gsd = gsd or datasets.ground_resolution(found)
    sizes: dict[str, Any] = {"layers": layers, "topk_ratio": topk_ratio, "neck": neck or "published"}
    if arch == "lite":
        sizes |= {"encoder": "tf_efficientnet_lite0", "channels": 128, "neck": neck or "conv"}
    elif arch != "paper":
        sizes |= {"encoder": arch}
    try:
        network_config = BicorSegConfig(classes=len(class_specs), **sizes)
    except ValueError as err:
        raise UsageError(str(err)) from err
    config = training.TrainConfig(
        epochs=epochs, crops_per_epoch=crops_per_epoch, batch_size=batch_size, learning_rate=lr,
        encoder_rate=encoder_rate, ema=ema, crop_size=crop_size, scales=scales, mosaic=mosaic, colour=colour,
        drawn_share=drawn_share, workers=workers, seed=seed,
    )  # fmt: skip
    spec = ModelSpec(
        name=name or output.stem,
        architecture="bicor-seg",
        classes=class_specs,
        network=vars(network_config),
        gsd_m=gsd,
        gsd_range_m=gsd_range or (gsd / config.scales[1], gsd / config.scales[0]),
        description=description,
        license=license_,
        data=data_note,
    )
    run_dir = run_dir or Path("runs") / spec.name
    network, spec = training.build_network(spec, init=init, encoder_weights=encoder_weights, seed=seed)
    loaded = training.load_training_scenes(found, spec, config)
    for title, part in zip(("training", "validation", "drawn"), loaded, strict=True):
        if part:
            typer.echo(f"{title}: {training.count_table(part, spec.class_names)}", err=True)
    result = training.train(
        network,
        spec,
        loaded,
        config,
        run_dir=run_dir,
        device=device,
        resume=resume,
        bar=not quiet and sys.stderr.isatty(),
    )
    saved = training.finish(network, spec, config, result, found, output, overwrite=overwrite)
    typer.echo(f"{output}: validation mIoU {result['val_miou']:.3f} at epoch {result['epoch']} of {epochs}")
    if "test" in saved.scores:
        typer.echo(f"test mIoU {saved.scores['test']['miou']:.3f}")


def read_classes(classes: str, init: str) -> tuple[Any, ...]:
    """Class names and colours from `a,b,c`, from a JSON file [{"name", "colour"}, ...] or from the model to
    start from."""
    import json

    from rsseg_cli.weights.registry import read_spec
    from rsseg_cli.weights.spec import ClassSpec, class_specs

    if not classes:
        if init:
            return read_spec(init).classes
        raise UsageError("no classes: pass --classes a,b,c or a JSON file")
    if not classes.endswith(".json"):
        return class_specs([part.strip() for part in classes.split(",")])
    try:
        listed = json.loads(Path(classes).read_text(encoding="utf-8"))
        return class_specs(
            [
                ClassSpec(item["name"], tuple(item["colour"])) if "colour" in item else item["name"]
                for item in listed
            ]
        )
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise DataError(f"{classes}: needs a JSON list of objects with name and colour ({err!r})") from err
