"""The option that rewrites the stored expectations, and the drawn scenes that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawn_scenes import DrawnScenes
from golden_files import Golden
from program import LAYERS, MODEL_OPTIONS, SMALL_TILES, run

torch.set_num_threads(1)  # results do not depend on the number of cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the stored expectations of tests/golden"
    )


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """Stored expectations; with `--update-golden` they are rewritten."""
    return Golden(update=request.config.getoption("--update-golden", default=False))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> DrawnScenes:
    """One drawn scene with its labels, and others made from it."""
    return DrawnScenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def plain(scenes, tmp_path_factory):
    """The whole scene, mapped once with all that a run can write, by the default settings."""
    folder = tmp_path_factory.mktemp("plain")
    layers = [item for kind in LAYERS for item in (f"--{kind}", folder / f"{kind}.tif")]
    outputs = ["-o", folder / "map.tif", *layers, "--preview", folder / "map.png"]
    outputs += ["--vector", folder / "map.gpkg", "--jobs", 1]
    answer = run("predict", scenes.whole, *MODEL_OPTIONS, *outputs, "--json")
    return folder, answer


@pytest.fixture(scope="session")
def part_map(scenes, tmp_path_factory):
    """A part of the scene, mapped alone."""
    path = tmp_path_factory.mktemp("part") / "map.tif"
    run("predict", scenes.part, *MODEL_OPTIONS, *SMALL_TILES, "-o", path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
