"""Save a trained network with its model card."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import nn

from rsseg_cli.training.recipes import RunSettings, Settings
from rsseg_cli.training.train_model import TrainResult
from rsseg_cli.weights import ModelSpec, save_model


def round_to_stored(network: nn.Module) -> None:
    """Round weights to half precision, as a model file stores them."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(tensor.half())


def save_trained(
    network: nn.Module,
    spec: ModelSpec,
    settings: RunSettings,
    result: TrainResult,
    scores: Mapping[str, Any],
    output: Path,
    *,
    table: str = "",
    command: str = "",
    overwrite: bool = False,
) -> ModelSpec:
    """Write the model file and its card, `<output>.md`; return the spec with settings and `scores`."""
    values = {key: value for part in settings.values().values() for key, value in part.items()}
    values |= {"crops_per_epoch": result.crops_per_epoch, "computed_in": result.precision}
    values |= {"computed_on": result.device}
    if isinstance(settings, Settings):
        values["recipe"] = settings.recipe
    saved = dataclasses.replace(spec, training=values, scores=dict(scores))
    save_model(output, network, saved, overwrite=overwrite)
    card = model_card(saved, history=result.history, table=table, command=command)
    output.with_suffix(".md").write_text(card, encoding="utf-8")
    return saved


MAX_EPOCH_ROWS = 40
MAX_CONFUSION_CLASSES = 30
CHOSEN_BY = {"boundary_iou": "Boundary IoU at 3 px", "codec_loss": "codec loss", "miou": "mIoU"}
FINAL_SHARE = 0.1  # a best epoch in this last part of a run: validation still rose


def model_card(
    spec: ModelSpec, *, history: Sequence[Mapping[str, Any]] = (), table: str = "", command: str = ""
) -> str:
    """Return a model card, Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rsseg_cli.training", ""),
        autoescape=False,  # Markdown; `text` escapes
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": lambda value: " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;"),
        "text_raw": lambda value: " ".join(value.splitlines()),
        "code": lambda value: value.replace("```", ""),
        "score": lambda value: "absent" if _is_absent(value) else f"{value:.3f}",
    }
    test, val = spec.scores.get("test"), spec.scores.get("val", {})
    absent = (
        [name for name, iou in zip(spec.class_names, test["iou"], strict=True) if _is_absent(iou)]
        if test
        else []
    )
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in ("torch", "lightning", "timm")]
    return environment.get_template("card.md.j2").render(
        spec=spec,
        network=_network(spec),
        data_table=table,
        test=test,
        val=val,
        absent=absent,
        max_classes=MAX_CONFUSION_CLASSES,
        curve=_curve(spec, history),
        versions=", ".join(versions),
        command=command,
        settings=json.dumps(spec.training, indent=1, ensure_ascii=False),
    )


def _network(spec: ModelSpec) -> str:
    sizes, refining = spec.network, spec.refinement
    if spec.is_refiner:
        model = f", for maps of {refining['model']}" if refining.get("model") else ""
        steps, band_m = refining.get("steps"), refining.get("band_m")
        return f"{spec.architecture}, {steps} steps, a band of {band_m} m around boundaries{model}"
    return (
        f"{sizes.get('encoder')}, {sizes.get('channels')} channels, {sizes.get('layers')} HBIS layers, top-k "
        f"share {sizes.get('topk_ratio')}"
    )


def _curve(spec: ModelSpec, history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Describe validation, epoch by epoch."""
    val = spec.scores.get("val", {})
    if not history or "epoch" not in val:
        return None
    best, last = int(val["epoch"]), history[-1]
    step = -(-len(history) // MAX_EPOCH_ROWS)
    key, name = next((key, name) for key, name in CHOSEN_BY.items() if key in last)
    return {
        "name": name,
        "key": key,
        "best": best,
        "best_score": val.get("val_miou", val.get(key)),
        "last": last,
        "planned": spec.training.get("epochs", last["epoch"]),
        "still_rising": best > last["epoch"] - max(1, round(last["epoch"] * FINAL_SHARE)),
        "rows": [
            item for item in history if item["epoch"] % step == 0 or item["epoch"] in (1, best, last["epoch"])
        ],
    }


def _is_absent(score: float | None) -> bool:
    return score is None or math.isnan(score)
