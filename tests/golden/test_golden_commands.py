"""What the program says of itself: help, options, models, errors of wrong use; names of the library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from golden_files import MODEL, REFINER
from program import masked, reported, run

import rsseg_cli
import rsseg_cli.weights
from rsseg_cli.cli import app

WRONG = {
    "unknown_command": ("map", "scene.tif"),
    "unknown_option": ("predict", "scene.tif", "--modle", "landcover"),
    "no_such_scene": ("predict", "gone.tif", "-o", "map.tif", "--model", MODEL),
    "no_such_model": ("predict", "scene.tif", "-o", "map.tif", "--model", "lancover"),
    "refiner_as_model": ("predict", "scene.tif", "-o", "map.tif", "--model", REFINER),
    "two_bands": ("predict", "two_bands.tif", "-o", "map.tif", "--model", MODEL),
    "map_exists": ("predict", "scene.tif", "-o", "there.tif", "--model", MODEL),
    "map_over_scene": ("predict", "scene.tif", "-o", "scene.tif", "--model", MODEL, "--overwrite"),
    "tile_size": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "--tile-size", "500"),
    "overlap": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "--overlap", "300"),
    "bbox_outside": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "--bbox", "0", "0", "9", "9"),
    "band_number": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "-b", "1,2,4"),
    "refine_option_alone": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "--steps", "2"),
    "polygon_option_alone": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "--simplify", "1"),
    "no_refiner": ("predict", "scene.tif", "-o", "map.tif", "--model", MODEL, "--refine"),
    "refiner_is_a_model": ("refine", "scene.tif", "there.tif", "-o", "map.tif", "--refiner", MODEL),
    "labels_without_classes": ("refine", "scene.tif", "there.tif", "-o", "map.tif", "--refiner", REFINER),
    "polygons_of_a_scene": ("vectorize", "scene.tif", "-o", "map.gpkg"),
    "polygon_format": ("vectorize", "there.tif", "-o", "map.dxf"),
    "unknown_class": ("vectorize", "there.tif", "-o", "map.gpkg", "--classes", "lake"),
    "score_without_names": ("score", "there.tif", "there.tif"),
    "eval_without_data": ("eval", "--model", MODEL),
    "no_such_model_shown": ("models", "show", "lancover"),
}
WRONG_TRAINING = {  # slow, as Lightning is loaded
    "train_without_data": ("train", "bicor-seg", "-o", "new.safetensors"),
    "train_output_name": ("train", "idgbr", "-o", "there.tif", "--data", "sheets", "--coarse", MODEL),
}


def commands(command: Any, name: str = "rsseg") -> Iterator[tuple[str, Any]]:
    """Every command and group below one, by its full name."""
    yield name, command
    if hasattr(command, "list_commands"):
        for child in command.list_commands(None):
            yield from commands(command.get_command(None, child), f"{name} {child}")


def test_help_of_every_command(golden):
    """The stored texts are those of all commands: new ones are noticed."""
    names = [name for name, _ in commands(typer.main.get_command(app))]
    for name in names:
        golden.check_text(f"help/{name.replace(' ', '_')}", run(*name.split()[1:], "--help").stdout)
    golden.check_names("help", [name.replace(" ", "_") for name in names])


def test_options_of_every_command(golden):
    """Names, defaults and kinds of parameters, as programs that call rsseg rely on."""
    found = {
        name: [
            f"{'/'.join([*item.opts, *item.secondary_opts])} default {item.default!r} nargs {item.nargs}"
            for item in command.params
        ]
        for name, command in commands(typer.main.get_command(app))
    }
    golden.check_json("options", found)


def test_names_of_the_library(golden):
    found = {
        "rsseg_cli": sorted(rsseg_cli.__all__),
        "rsseg_cli.weights": sorted(rsseg_cli.weights.__all__),
    }
    for name in found["rsseg_cli"]:
        assert getattr(rsseg_cli, name) is not None
    golden.check_json("library", found)


def test_bundled_models(golden):
    """Names, classes and the shape of what is reported; numbers and texts come and go with training."""
    found = json.loads(run("models", "list", "--json").stdout)
    golden.check_json("models_list", [shape(item, depth=2) | {"name": item["name"]} for item in found])
    lines = run("models", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(found)]] == [item["name"] for item in found]
    card = json.loads(run("models", "show", found[0]["name"], "--json").stdout)
    golden.check_json("models_show_bundled", shape(card, depth=1))


@pytest.mark.parametrize("path", [MODEL, REFINER], ids=lambda path: path.stem)
def test_stored_models(golden, folder, path):
    found = json.loads(run("models", "show", path, "--json").stdout)
    golden.check_json(f"models_show_{path.stem}", masked(found, folder))
    golden.check_text(f"messages/models_show_{path.stem}", reported(run("models", "show", path), folder))


def shape(value: Any, *, depth: int) -> Any:
    """Keys and types, to a depth."""
    if isinstance(value, dict):
        return {key: shape(item, depth=depth - 1) for key, item in value.items()} if depth else "dict"
    return type(value).__name__


@pytest.mark.parametrize(
    "name", [*WRONG, *(pytest.param(name, marks=pytest.mark.slow) for name in WRONG_TRAINING)]
)
def test_wrong_use(golden, folder, make_raster, name):
    """Messages and exit codes; nothing is written."""
    make_raster("scene.tif", shape=(96, 128))
    make_raster("two_bands.tif", bands=2, shape=(96, 128))
    make_raster("there.tif", bands=1, shape=(96, 128))
    before = sorted(path.name for path in folder.iterdir())
    answer = run(*(WRONG | WRONG_TRAINING)[name], exit_code=None)
    assert answer.exit_code in (1, 2)
    assert "Traceback" not in answer.stderr
    golden.check_text(f"messages/wrong_{name}", reported(answer, folder))
    assert sorted(path.name for path in folder.iterdir()) == before
