"""Temporary files of a run: where they lie, and what of them is removed."""

import os

import pytest
import torch
from networks import Local, trained

from rsseg_cli.pipeline.workdir import WorkDir


@pytest.fixture
def work(tmp_path):
    (tmp_path / "more").mkdir()
    names = {"labels": "map.tif", "confidence": "c.tif", "preview": "more/p.png", "vector": "more/v.gpkg"}
    return WorkDir({kind: tmp_path / name for kind, name in names.items()})


def test_files_beside_outputs_are_listed_once_a_folder(work, tmp_path, monkeypatch):
    """And never in the folder of the map, which may hold thousands of maps: nothing lies there."""
    mine = [work.of("preview", "png"), work.beside(work.paths["vector"], "vector")]
    for file in (*mine, tmp_path / "more" / "other.png", tmp_path / "more" / f".p.png.{work.tag}.old"):
        file.touch()
    assert work.of("confidence", "tif").parent == work.folder
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: scanned.append(folder) or scandir(folder))
    assert sorted(work.elsewhere()) == sorted(mine)
    assert scanned == [tmp_path / "more"]


def test_weights_are_hashed_again_only_if_they_change(monkeypatch):
    model, counted = trained(Local(3), 3), []
    state_dict = model.network.state_dict
    monkeypatch.setattr(model.network, "state_dict", lambda: counted.append(1) or state_dict())
    first = model.sha256()
    model.network.to(memory_format=torch.channels_last).eval()
    assert model.sha256() == first
    assert len(counted) == 1
    with torch.no_grad():
        next(model.network.parameters()).add_(1)
    assert model.sha256() != first
    assert len(counted) == 2
