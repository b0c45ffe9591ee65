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
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write (.safetensors).")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder with images and masks of the same names; repeatable.")
    ] = None,
    images: Annotated[str, typer.Option(help="Pattern of images inside --data.")] = "images/*",
    masks: Annotated[str, typer.Option(help="Pattern of masks inside --data.")] = "masks/*",
    scenes: Annotated[
        list[Path] | None, typer.Option(help="CSV with image, labels, split (train, val, test); repeatable.")
    ] = None,
    val: Annotated[list[str] | None, typer.Option(help="Pattern of names held out for validation.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Pattern of names held out for testing.")] = None,
    classes: Annotated[
        str,
        typer.Option(help="Names in the order of the labels, a,b,c, or a JSON file of names and colours."),
    ] = "",
    arch: Annotated[str, typer.Option(help="lite, paper, or a timm encoder.")] = "lite",
    neck: Annotated[str, typer.Option(help="published or conv (default for lite).")] = "",
    layers: Annotated[int, typer.Option(help="HBIS layers.")] = 2,
    topk_ratio: Annotated[float, typer.Option(help="Share of pixels that update a class, 0 to 1.")] = 1.0,
    init: Annotated[str, typer.Option(help="Start from a model: name or path.")] = "",
    encoder_weights: Annotated[
        str, typer.Option(help="imagenet (lite: pip install rsseg[train]), none, or a .pth of the encoder.")
    ] = "imagenet",
    gsd: Annotated[float, typer.Option(help="Ground resolution to train at, m a pixel.")] = 0.3,
    gsd_range: Annotated[
        tuple[float, float] | None, typer.Option(help="Resolutions that are run as they are, m a pixel.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the crops, a validation after each.")] = 30,
    crops_per_epoch: Annotated[int, typer.Option(help="Random crops an epoch.")] = 800,
    batch_size: Annotated[int, typer.Option(help="Crops a step.")] = 4,
    crop_size: Annotated[int, typer.Option(help="Side of a crop, px.")] = 256,
    scales: Annotated[tuple[float, float], typer.Option(help="Smallest and largest random scale.")] = (
        0.75,
        1.5,
    ),
    mosaic: Annotated[float, typer.Option(help="Share of crops put together from four.")] = 0.25,
    colour: Annotated[float, typer.Option(help="Strength of colour augmentation.")] = 1.0,
    drawn_share: Annotated[float, typer.Option(help="Share of crops from drawn scenes.")] = 0.0,
    lr: Annotated[float, typer.Option(help="Highest learning rate of the head.")] = 1e-3,
    encoder_rate: Annotated[float, typer.Option(help="The encoder's rate in relation to the head's.")] = 0.3,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights; 0 turns it off.")] = 0.99,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that prepare crops.")] = 0,
    name: Annotated[str, typer.Option(help="The model's name; default: the output's.")] = "",
    description: Annotated[str, typer.Option(help="One line for the model card.")] = "",
    license_: Annotated[str, typer.Option("--license", help="Licence of the weights, for the card.")] = "",
    data_note: Annotated[str, typer.Option(help="Source and licence of the data, for the card.")] = "",
    run_dir: Annotated[Path | None, typer.Option(help="Checkpoints and log; default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last epoch.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train BiCoR-Seg on folders of images and masks, or on georeferenced scenes with label rasters.

    Example:

        rsseg train bicor-seg --data sheets --classes other,building --val 'north*' --gsd 0.2 -o
        buildings.safetensors
    """
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; pass --overwrite to replace it")
    if not data and not scenes:
        raise UsageError("nothing to train on: pass --data FOLDER or --scenes LIST.csv")
    import logging

    from rsseg_cli import datasets, training
    from rsseg_cli.models.bicor_seg import BicorSegConfig
    from rsseg_cli.weights import ModelSpec

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    training.keep_freed_memory()
    found = [scene for path in scenes or () for scene in datasets.read_scene_list(path)]
    for folder in data or ():
        found += datasets.find_scenes(folder, images=images, masks=masks, val=val or (), test=test or ())
    class_specs = read_classes(classes, init)
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
        network, spec, loaded, config, run_dir=run_dir, device=device, resume=resume, bar=not quiet
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
