"""Models as STAC Items with the Machine Learning Model extension, for catalogues.

Source: https://github.com/stac-extensions/mlm (1.5), https://github.com/stac-extensions/classification (2.0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsseg_cli.weights.spec import ClassSpec, ModelSpec

STAC_VERSION = "1.1.0"
BASE = "https://stac-extensions.github.io"
CLASSIFICATION = f"{BASE}/classification/v2.0.0/schema.json"
MLM = f"{BASE}/mlm/v1.5.0/schema.json"
FILE = f"{BASE}/file/v2.1.0/schema.json"
WORLD = (-180.0, -90.0, 180.0, 90.0)  # of a model that says nothing of where it holds
EVER = ("1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
FULL_SCALE = 255.0  # of 8-bit values, whose means and deviations the model's are
FORMATS = {
    ".safetensors": ("application/octet-stream; framework=pytorch", "safetensors"),
    ".onnx": ("application/octet-stream; framework=onnx", "onnx"),
}
ARCHITECTURES = {"bicor-seg": "BiCoR-Seg", "idgbr": "IDGBR", "idgbr-lite": "IDGBR lite"}


def slug(name: str, number: int = 0) -> str:
    """Return a name of letters, digits, - and _ alone."""
    return re.sub(r"[^0-9A-Za-z_-]+", "-", name).strip("-") or f"class-{number}"


def class_objects(classes: Sequence[ClassSpec]) -> list[dict[str, Any]]:
    """Describe classes as the classification extension does: values from 0, with colours."""
    described, seen = [], set[str]()
    for value, item in enumerate(classes):
        name = slug(item.name, value)
        name = f"{name}-{value}" if name in seen else name
        seen.add(name)
        colour = "{:02X}{:02X}{:02X}".format(*item.colour)
        described.append({"value": value, "name": name, "title": item.name, "color_hint": colour})
    return described


def model_item(spec: ModelSpec, file: Path, sha256: str) -> dict[str, Any]:
    """Describe a model and its file."""
    west, south, east, north = WORLD
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    tasks = ["semantic-segmentation"]
    media, artifact = FORMATS.get(file.suffix.lower(), FORMATS[".safetensors"])
    bands = [{"name": band} for band in spec.bands]
    scaling = [
        {"type": "z-score", "mean": mean * FULL_SCALE, "stddev": std * FULL_SCALE}
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    properties: dict[str, Any] = {
        "title": spec.name,
        "description": spec.description or f"{spec.name}: {', '.join(spec.class_names)}",
        "datetime": None,
        "start_datetime": EVER[0],
        "end_datetime": EVER[1],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "license": spec.license if re.fullmatch(r"[\w.+-]+", spec.license) else "other",
        "mlm:name": spec.name,
        "mlm:architecture": ARCHITECTURES.get(spec.architecture, spec.architecture),
        "mlm:tasks": tasks,
        "mlm:framework": "ONNX" if artifact == "onnx" else "PyTorch",
        "mlm:pretrained": True,
        "mlm:batch_size_suggestion": 1,
        "mlm:input": [
            {
                "name": "image",
                "bands": list(spec.bands),
                "input": _tensor([-1, len(spec.bands), -1, -1], "bands"),
                "value_scaling": scaling,
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "logits",
                "tasks": tasks,
                "result": _tensor([-1, len(spec.classes), -1, -1], "classes"),
                "classification:classes": class_objects(spec.classes),
            }
        ],
    }
    if artifact != "onnx":
        properties["mlm:framework_version"] = version("torch")
    settings = {key: value for key, value in spec.network.items() if re.fullmatch(r"[0-9a-zA-Z_.-]+", key)}
    properties |= {"mlm:hyperparameters": settings} if settings else {}
    properties |= {"gsd": spec.gsd_m} if spec.gsd_m is not None else {}
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [MLM, CLASSIFICATION, FILE],
        "id": slug(spec.name),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(WORLD),
        "properties": properties,
        "links": [],
        "assets": {
            "model": {
                "href": file.absolute().as_uri(),
                "title": f"Weights of {spec.name}",
                "type": media,
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": artifact,
                "bands": bands,
                "file:size": file.stat().st_size,
                "file:checksum": f"1220{sha256}",  # multihash: SHA-256, 32 bytes
            }
        },
    }


def _tensor(shape: list[int], second: str) -> dict[str, Any]:
    return {"shape": shape, "dim_order": ["batch", second, "height", "width"], "data_type": "float32"}
