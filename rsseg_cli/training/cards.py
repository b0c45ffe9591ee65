"""Model cards, Markdown beside a model file."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jinja2

from rsseg_cli.training.calibration import calibration_section
from rsseg_cli.weights import ModelSpec

MAX_CONFUSION_CLASSES = 30
MAX_EPOCH_ROWS = 40
CHOSEN_BY = {"boundary_iou": "Boundary IoU at 3 px", "codec_loss": "codec loss", "miou": "mIoU"}
FINAL_SHARE = 0.1  # a best epoch in this last part of a run: validation still rose


def card_templates() -> jinja2.Environment:
    """Return the templates of model cards, Markdown."""
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
    return environment


def model_card(
    spec: ModelSpec, *, history: Sequence[Mapping[str, Any]] = (), table: str = "", command: str = ""
) -> str:
    environment = card_templates()
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
        confidence=calibration_section(spec),
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
