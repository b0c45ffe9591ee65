"""Models and tasks for tests of scenes that are shared out, and what must be the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from rsseg_cli.batch import SceneTask
from rsseg_cli.config import PredictConfig
from rsseg_cli.models import BicorSeg, BicorSegConfig, LiteRefiner, LiteRefinerConfig
from rsseg_cli.weights import ModelSpec, save_model

SMALL = PredictConfig(tile_size=64, overlap=16)
KINDS = ("labels", "confidence", "probabilities")


def save_models(folder: Path) -> tuple[str, str]:
    """A small model and a small refiner."""
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    classes = ModelSpec.for_network(classes=["roof", "road", "tree"]).classes
    spec = ModelSpec(
        name="tiny", architecture="bicor-seg", classes=classes, network=asdict(config), refiner="tiny-refiner"
    )
    model = save_model(folder / "model.safetensors", BicorSeg(config), spec)
    sizes = LiteRefinerConfig(
        classes=3, encoder="tf_efficientnet_lite0", codec_channels=8, widths=(16, 16, 16), middle=1
    )
    spec = ModelSpec(
        name="tiny-refiner",
        architecture="idgbr-lite",
        classes=classes,
        network=asdict(sizes),
        refinement={"steps": 1, "band_m": 2.0},
    )
    network = LiteRefiner(sizes)
    with torch.no_grad():  # an untrained one gives its map back
        network.denoiser.leave.weight.mul_(50)
    return str(model), str(save_model(folder / "tiny-refiner.safetensors", network, spec))


def task_of(scene, folder, model, *, index=0, kinds=KINDS, **more) -> SceneTask:
    folder.mkdir(exist_ok=True)
    outputs = {kind: folder / f"{kind}{index}.tif" for kind in kinds}
    if vector := more.pop("polygons", None):
        outputs["vector"] = folder / f"polygons{index}.{vector}"
    return SceneTask(
        index=index, scene=str(scene), outputs=outputs, model=model, **({"config": SMALL} | more)
    )


def assert_same(task: SceneTask, outcome: Any, other: SceneTask, expected: Any) -> None:
    """Pixels, tags, overviews, polygons, counts and notes; and nothing is left beside the outputs."""
    assert (outcome.error, expected.error) == ("", "")
    for kind, path in task.outputs.items():
        if kind == "vector":
            assert _polygons(path) == _polygons(other.outputs[kind])
            continue
        with rasterio.open(path) as ours, rasterio.open(other.outputs[kind]) as theirs:
            np.testing.assert_array_equal(ours.read(), theirs.read())
            assert ours.tags() == theirs.tags()
            assert ours.overviews(1) == theirs.overviews(1)
    reported = [found.result.as_dict() | {"seconds": 0, "paths": 0} for found in (outcome, expected)]
    assert reported[0] == reported[1]


def _polygons(path):
    import geopandas

    table = geopandas.read_file(path)
    return sorted(table.to_wkb(hex=True).astype(str).itertuples(index=False, name=None))


def workers_at(method: str) -> list[int]:
    """Processes of workers that are running a method of theirs, by the title that Ray gives them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::RayWorker.{method}".encode()):
            found.append(int(folder.name))
    return found
