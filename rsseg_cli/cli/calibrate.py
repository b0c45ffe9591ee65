"""`rsseg models calibrate`: confidences that hold, and what a model's training data look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.messages import say
from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig


@from_settings
def calibrate_command(
    model: opt.ModelFile,
    *,
    output: opt.ModelOutput,
    data: Annotated[DataConfig, Options(opt.LABELLED)],
    split: Annotated[
        Literal["train", "val", "test", "all"],
        typer.Option(help="Part of the data whose labels set the temperature; all is every scene."),
    ] = "val",
    training: Annotated[
        list[str] | None,
        opt.option(
            "SCENE",
            "Scenes that the model was trained on, without labels: a raster, glob, folder or @LIST.txt; "
            "repeatable. Default: the train part of the data.",
        ),
    ] = None,
    config: Annotated[PredictConfig, Options("tile_size gsd_m device runtime dtype")],
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Set a model file's temperature, and describe its training data in it.

    The temperature makes confidences agree with the share of right pixels on labels that the model was not
    trained on; classes of maps stay as they are. With the description of the training data, `predict` warns
    of scenes that are unlike them. `rsseg train` does both at its end. The tensors are copied as they are.

    Example: rsseg models calibrate mine.safetensors --data sheets --val 'north_*' -o calibrated.safetensors
    """
    from rsseg_cli.batch import list_scenes
    from rsseg_cli.training import calibration

    scenes = [scene.path for scene in list_scenes(training)] if training else []
    saved = calibration.calibrate_file(
        model, output, data, split, training=scenes, config=config,
        progress=(lambda _: None) if quiet else say, overwrite=overwrite,
    )  # fmt: skip
    result = saved.scores["calibration"]
    if as_json:
        opt.echo_json({"path": str(output), **result})
    else:
        typer.echo(summary(output, result))


def summary(path: Path, result: dict[str, Any]) -> str:
    lines = [
        f"{path}: temperature {result['temperature']:.3g}, chosen on {result['pixels']:,} pixels",
        f"  expected calibration error {result['ece_before']:.3f} -> {result['ece_after']:.3f}, log loss "
        f"{result['log_loss_before']:.3f} -> {result['log_loss_after']:.3f}",
    ]
    if "training_tiles" in result:
        lines.append(
            f"  training data described by {result['training_tiles']} tiles; {result['false_alarms']:.1%} of "
            "the labelled ones are unlike them"
        )
    return "\n".join(lines)
