"""The model card of a training run: Markdown, filled in from what the run found, did and scored."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rsseg_cli.data.types import ScoringProtocol
from rsseg_cli.training.module import protocol_scores
from rsseg_cli.training.recipes import Settings
from rsseg_cli.training.train_model import TrainResult
from rsseg_cli.weights import ModelSpec, save_model


def as_stored(network: nn.Module) -> None:
    """Round weights to the halves that a model file holds, so that scores are those of the file."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(tensor.half())


def finish(
    network: nn.Module,
    spec: ModelSpec,
    settings: Settings,
    result: TrainResult,
    test: NDArray[np.integer] | None,
    output: Path,
    *,
    protocol: ScoringProtocol | None = None,
    found: str = "",
    command: str = "",
    overwrite: bool = False,
) -> ModelSpec:
    """Write the model file and its card `<output>.md` beside it.

    Args:
        network: with its best weights.
        spec: of the network.
        settings: of the run.
        result: of `train`.
        test: confusion matrix of scenes that were never trained on nor chosen by, (N, N) or (N, N + 1).
        output: model file.
        protocol: which classes count in the means.
        found: table of the data, for the card.
        command: that repeats the run, for the card.
        overwrite: replace both files.

    Returns:
        the spec that was saved: with the run's settings and scores.
    """
    scores: dict[str, Any] = {
        "val": {
            "val_miou": result.score,
            "epoch": result.epoch,
            "seconds": result.seconds,
            "processor_seconds": result.processor_seconds,
            "steps": result.steps,
        }
    }
    if test is not None:
        scores["test"] = protocol_scores(test, spec.class_names, protocol or ScoringProtocol())
        scores["test"]["confusion"] = test.tolist()
    values = trained_with(settings, result) | {"recipe": settings.recipe}
    saved = dataclasses.replace(spec, training=values, scores=scores)
    save_with_card(saved, network, result, output, found=found, command=command, overwrite=overwrite)
    return saved


def trained_with(settings: Any, result: TrainResult) -> dict[str, Any]:
    """A run's settings, of whatever sections, and what was counted and chosen as it ran."""
    values = {key: value for part in settings.values().values() for key, value in part.items()}
    values |= {"crops_per_epoch": result.crops_per_epoch}
    return values | {"computed_in": result.precision, "computed_on": result.device}


def save_with_card(
    saved: ModelSpec,
    network: nn.Module,
    result: TrainResult,
    output: Path,
    *,
    found: str,
    command: str,
    overwrite: bool,
) -> None:
    """Write the model file, and its card beside it."""
    save_model(output, network, saved, overwrite=overwrite)
    card = model_card(saved, history=result.history, found=found, command=command)
    output.with_suffix(".md").write_text(card, encoding="utf-8")


MOST_EPOCHS = 40  # rows of the curve's table
MOST_CLASSES = 30  # of the confusion matrix
CHOSEN_BY = {"boundary_iou": "Boundary IoU at 3 px", "codec_loss": "codec loss", "miou": "mIoU"}
RISING_SHARE = 0.1  # the best epoch in this last part of a run: validation still rose


def model_card(
    spec: ModelSpec, *, history: Sequence[Mapping[str, Any]] = (), found: str = "", command: str = ""
) -> str:
    """A model card in Markdown.

    Args:
        spec: as saved: with settings in `training` and scores in `scores`.
        history: of each epoch: epoch, loss, miou.
        found: table of the data.
        command: that repeats the run.
    """
    kind = "An IDGBR refiner." if spec.is_refiner else "A BiCoR-Seg network."
    parts = [
        f"# {_text(spec.name)}\n",
        f"{_text(spec.description) or kind}\n",
        _facts(spec),
        _data(spec, found),
        _test(spec),
        _curve(spec, history),
        _not_tested(spec),
        _run(spec, command),
    ]
    return "\n".join(part for part in parts if part)


def _facts(spec: ModelSpec) -> str:
    low, high = spec.gsd_range_m or (None, None)
    runs = f"; {low:.3g} to {high:.3g} m is run as it is" if low and high else ""
    gsd = f"{spec.gsd_m:.4g} m a pixel{runs}" if spec.gsd_m else "any: scenes are run as they are"
    use = "predict scene.tif --model MODEL.safetensors -o map.tif"
    if spec.is_refiner:
        use = "refine scene.tif map.tif --refiner REFINER.safetensors -o refined.tif"
    return "\n".join(
        [
            f"- **Use**: `rsseg {use}`",
            f"- **Classes**: {', '.join(map(_text, spec.class_names))}",
            f"- **Bands**: {', '.join(map(_text, spec.bands))}",
            f"- **Ground resolution**: {gsd}",
            f"- **Network**: {_network(spec)}",
            f"- **Licence of the weights**: {_text(spec.license) or 'not stated (--license)'}",
            f"- **Source and licence of the data**: {_text(spec.data) or 'not stated (--data-note)'}",
            "",
        ]
    )


def _network(spec: ModelSpec) -> str:
    sizes = spec.network
    if spec.is_refiner:
        how = spec.refinement
        model = f", behind {_text(str(how['model']))}" if how.get("model") else ""
        return (
            f"{spec.architecture}, {how.get('steps')} steps, a band of {how.get('band_m')} m around "
            f"boundaries{model}"
        )
    return (
        f"{sizes.get('encoder')}, {sizes.get('channels')} channels, {sizes.get('layers')} HBIS layers, top-k "
        f"share {sizes.get('topk_ratio')}"
    )


def _data(spec: ModelSpec, found: str) -> str:
    if not found:
        return ""
    return f"## Data\n\nAs found before training:\n\n```text\n{found.replace('```', '')}\n```\n"


def _test(spec: ModelSpec) -> str:
    test = spec.scores.get("test")
    if not test:
        return "## Test scores\n\nNone: no scenes were held out for a test (`--test`).\n"
    lines = ["## Test scores", "", "| class | IoU | F1 |", "|---|---|---|"]
    for name, iou, f1 in zip(spec.class_names, test["iou"], test["f1"], strict=True):
        lines.append(f"| {_text(name)} | {_decimal(iou)} | {_decimal(f1)} |")
    lines.append(f"| mean | {_decimal(test['miou'])} | {_decimal(test['mean_f1'])} |")
    accuracy = f"Overall accuracy {_decimal(test['overall_accuracy'])}."
    scored = (
        "From one confusion matrix over all test scenes, mapped and scored as by `rsseg eval`; they were not"
    )
    lines += ["", f"{accuracy} {scored} used to choose the epoch."]
    return "\n".join([*lines, "", *_confusion(spec, test.get("confusion"))])


def _confusion(spec: ModelSpec, matrix: Sequence[Sequence[int]] | None) -> list[str]:
    """The confusion matrix as a table of pixels."""
    if not matrix or len(matrix) > MOST_CLASSES:
        return []
    names = [_text(name) for name in spec.class_names]
    names_of_columns = names + ["no class"] * (len(matrix[0]) - len(names))
    lines = ["Pixels; rows: label, columns: map.", "", f"| | {' | '.join(names_of_columns)} |"]
    lines.append("|---" * (len(names_of_columns) + 1) + "|")
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"| {name} | {' | '.join(str(count) for count in row)} |")
    return [*lines, ""]


def _curve(spec: ModelSpec, history: Sequence[Mapping[str, Any]]) -> str:
    val = spec.scores.get("val", {})
    if not history or "epoch" not in val:
        return ""
    best, last = int(val["epoch"]), int(history[-1]["epoch"])
    first_of_end = last - max(1, round(last * RISING_SHARE)) + 1
    if best >= first_of_end:
        rose = "It still rose at the end: more epochs may give more."
    else:
        rose = "It had stopped rising before the end."
    planned = spec.training.get("epochs", last)
    ended = f" of {planned}, stopped early" if last < planned else ""
    step = -(-len(history) // MOST_EPOCHS)
    shown = [item for item in history if item["epoch"] % step == 0 or item["epoch"] in (1, best, last)]
    key, name = next((key, name) for key, name in CHOSEN_BY.items() if key in history[-1])
    rows = [f"| {item['epoch']} | {_decimal(item['loss'])} | {_decimal(item[key])} |" for item in shown]
    coarse = ""
    if "coarse_boundary_iou" in history[-1]:
        coarse = (
            f" The rough maps have {_decimal(history[-1]['coarse_boundary_iou'])} (mIoU "
            f"{_decimal(history[-1]['coarse_miou'])}; refined {_decimal(val['miou'])})."
        )
    return "\n".join(
        [
            "## Validation",
            "",
            f"Best {name} {_decimal(val.get('val_miou', val.get(key)))} at epoch {best}, "
            f"{_decimal(history[-1][key])} at the last, {last}{ended}. {rose} The best epoch is the one that "
            f"was saved.{coarse}",
            "",
            f"| epoch | training loss | validation {name} |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _not_tested(spec: ModelSpec) -> str:
    test = spec.scores.get("test")
    lines = ["## What it was not tested on", ""]
    if test:
        lines.append("- Places, seasons and sensors other than those of the test scenes above.")
        absent = [name for name, iou in zip(spec.class_names, test["iou"], strict=True) if _unknown(iou)]
        if absent:
            lines.append(f"- Classes that the test scenes do not hold: {', '.join(map(_text, absent))}.")
    else:
        lines.append("- Anything but the validation scenes, which chose the epoch: their score flatters.")
    if spec.gsd_m:
        lines.append(f"- Ground resolutions other than {spec.gsd_m:.4g} m a pixel.")
    lines.append(
        f"- Bands other than {', '.join(map(_text, spec.bands))}; scenes that are not stretched alike."
    )
    return "\n".join([*lines, ""])


def _run(spec: ModelSpec, command: str) -> str:
    val = spec.scores.get("val", {})
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "lightning", "timm"))
    minutes = val.get("seconds", 0) / 60
    lines = [
        "## Run",
        "",
        f"- **Machine**: {_text(str(spec.training.get('computed_on', 'not known')))}, "
        f"{spec.training.get('computed_in', '')} arithmetic",
        f"- **Versions**: Python {platform.python_version()}, {versions}",
        f"- **Time**: {minutes:.1f} minutes, {val.get('steps', '?')} steps",
        f"- **Recipe**: {spec.training.get('recipe', 'not known')}",
        "",
    ]
    if command:
        lines += ["To repeat it:", "", f"    {' '.join(command.splitlines())}", ""]
    settings = json.dumps(spec.training, indent=1, ensure_ascii=False).replace("```", "")
    return "\n".join([*lines, "All settings:", "", "```json", settings, "```", ""])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _unknown(score: float | None) -> bool:
    return score is None or math.isnan(score)


def _decimal(score: float | None) -> str:
    return "absent" if score is None or math.isnan(score) else f"{score:.3f}"


def _text(value: str) -> str:
    """One line that Markdown tables and HTML renderers take as text."""
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")
