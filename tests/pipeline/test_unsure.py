"""Pixels below --min-confidence: no data, or a class of their own, in every output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from networks import Local, one_hot, read, trained

from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.pipeline import predict
from rsseg_cli.raster import classes

RUN = PredictConfig(tile_size=64, overlap=16, device="cpu", batch_size=1)


@pytest.mark.parametrize("gsd_m", [None, 1.0])
def test_unsure_pixels_have_no_data(make_raster, tmp_path: Path, gsd_m: float | None) -> None:
    scene = make_raster(shape=(150, 130), gsd=0.5, kind="value", hole=(10, 20, 30, 25))
    model, config = trained(Local(), 5), replace(RUN, gsd_m=gsd_m)
    whole, sure, part = (tmp_path / name for name in ("whole.tif", "sure.tif", "part.tif"))
    predict(scene, whole, model=model, config=config, confidence=sure)
    limit = int(np.median(read(sure)))
    result = predict(scene, part, model=model, config=replace(config, min_confidence=(limit - 0.5) / 254))
    expected = np.where(read(sure) < limit, 255, read(whole))
    assert np.array_equal(read(part), expected)
    assert 0 < (expected == 255).sum() < expected.size
    assert result.valid_pixels == (expected != 255).sum()
    assert not (tmp_path / "confidence.tif").exists()


def test_unsure_pixels_are_a_class(make_raster, tmp_path: Path) -> None:
    scene = make_raster(shape=(150, 130), gsd=0.5)
    model = trained(Local(), 5)
    whole, sure, part, shapes = (tmp_path / name for name in ("a.tif", "s.tif", "b.tif", "b.gpkg"))
    predict(scene, whole, model=model, config=RUN, confidence=sure)
    config = replace(RUN, min_confidence=0.9, unsure="class")
    result = predict(scene, part, model=model, config=config, vector=shapes, preview=tmp_path / "b.png")
    expected = np.where(read(sure) < np.ceil(0.9 * 254), 5, read(whole))
    assert np.array_equal(read(part), expected)
    assert result.classes["unsure"].pixels == (expected == 5).sum() > 0
    assert result.valid_pixels == expected.size
    assert classes.read_names(part)[5] == "unsure"
    assert len(classes.read_colours(part)) >= 6
    assert "unsure" in set(pyogrio.read_dataframe(shapes)["class_name"])


def test_every_pixel_is_mapped_without_a_limit(make_raster, tmp_path: Path) -> None:
    result = predict(make_raster(), tmp_path / "m.tif", model=trained(Local(), 5), config=RUN)
    assert "unsure" not in result.classes


def test_limits_that_cannot_be(make_raster, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--min-confidence 1\.5: needs 0 to 1"):
        replace(RUN, min_confidence=1.5)
    model = one_hot()
    names = [*model.spec.classes[:-1], replace(model.spec.classes[-1], name="Unsure")]
    model = replace(model, spec=replace(model.spec, classes=tuple(names)))
    with pytest.raises(ModelError, match="has a class 'unsure' itself"):
        predict(
            make_raster(), tmp_path / "m.tif", model=model,
            config=replace(RUN, min_confidence=0.5, unsure="class"),
        )  # fmt: skip
