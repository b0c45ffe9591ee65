"""Library and precision of a run: part of what it is, reported with its result, kept by who resumes it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Local, read, trained

from rsseg_cli import RefineConfig, predict
from rsseg_cli.models import BicorSeg, BicorSegConfig, LiteRefinerConfig
from rsseg_cli.weights import ModelSpec, load_model, save_model

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"tile_size": 64, "overlap": 16, "device": "cpu"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="test_efficientnet", channels=32)
    spec = ModelSpec.for_network(classes=["a", "b", "c"], name="small")
    spec = replace(spec, architecture="bicor-seg", network=vars(config))
    return save_model(tmp_path / "small.safetensors", BicorSeg(config).eval(), spec)


@pytest.fixture
def refiner(tmp_path: Path) -> Path:
    config = LiteRefinerConfig(
        classes=3,
        encoder="test_efficientnet",
        latent_channels=6,
        codec_channels=8,
        widths=(16, 16, 16),
        steps=1,
    )
    spec = ModelSpec.for_network(classes=["a", "b", "c"], name="small-refiner")
    spec = replace(spec, architecture="idgbr-lite", network=vars(config))
    return save_model(tmp_path / "refiner.safetensors", config.build().eval(), spec)


@pytest.fixture
def scene(make_raster: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 200, 130)).astype(np.uint8)
    return make_raster("noise.tif", array=pixels)


def test_the_result_tells_what_computed_it(scene: Path, model: Path, tmp_path: Path) -> None:
    result = predict(scene, tmp_path / "a.tif", model=model, dtype="float32", **SMALL)
    assert result.as_dict()["computed"] == {
        "small": {"device": "cpu", "runtime": "openvino", "dtype": "float32"}
    }
    by_torch = predict(scene, tmp_path / "b.tif", model=model, runtime="torch", **SMALL)
    assert by_torch.computed["small"] == {"device": "cpu", "runtime": "torch", "dtype": "float32"}
    assert (read(tmp_path / "a.tif") == read(tmp_path / "b.tif")).mean() > 0.999
    own = predict(scene, tmp_path / "own.tif", model=trained(Local(), 5), **SMALL)
    assert own.computed == {"external": {"device": "cpu", "runtime": "torch", "dtype": "float32"}}


def test_a_model_in_memory_gives_the_pixels_of_its_file(scene: Path, model: Path, tmp_path: Path) -> None:
    for name, given in (("file", model), ("loaded", load_model(model))):
        predict(scene, tmp_path / f"{name}.tif", model=given, confidence=tmp_path / f"{name}_c.tif", **SMALL)
    for ending in ("", "_c"):
        np.testing.assert_array_equal(
            read(tmp_path / f"file{ending}.tif"), read(tmp_path / f"loaded{ending}.tif")
        )


def test_who_resumes_keeps_to_it(
    scene: Path,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    def run(name: str, **more: Any) -> Any:
        confidence = tmp_path / f"{name}_c.tif"
        return predict(
            scene,
            tmp_path / f"{name}.tif",
            model=model,
            confidence=confidence,
            checkpoint_s=0.0,
            **SMALL,
            **more,
        )

    run("whole")
    for name in ("same", "other"):
        with pytest.raises(KeyboardInterrupt):
            run(name, progress=stop)
    with caplog.at_level(logging.WARNING):
        run("same", resume=True, runtime="openvino")
        assert not caplog.messages
        run("other", resume=True, runtime="torch", dtype="float32")
    assert "computed small runtime was openvino, is torch" in caplog.text
    for ending in (".tif", "_c.tif"):
        np.testing.assert_array_equal(read(tmp_path / f"same{ending}"), read(tmp_path / f"whole{ending}"))


HEAVY = {"lightning", "torchgeo", "diffusers", "timm", "torchvision", "geopandas", "pandas", "scipy", "ray"}


def test_a_refined_prediction_loads_what_it_needs(
    scene: Path, model: Path, refiner: Path, tmp_path: Path
) -> None:
    """The second time: the first one builds the networks to compile them."""
    settings = {"refiner": os.fspath(refiner), "band_m": 4.0, "tile_size": 64}
    predict(scene, tmp_path / "first.tif", model=model, refine=RefineConfig(**settings), **SMALL)
    code = (
        "import sys; from rsseg_cli import RefineConfig, predict\n"
        f"refine = RefineConfig(**{settings!r})\n"
        f"predict({str(scene)!r}, 'second.tif', model={str(model)!r}, refine=refine, **{SMALL!r})\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(done.stdout.split())
    assert "openvino" in done.stdout.split()
    np.testing.assert_array_equal(read(tmp_path / "second.tif"), read(tmp_path / "first.tif"))
