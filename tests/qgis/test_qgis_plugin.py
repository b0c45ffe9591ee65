"""The plugin in a real QGIS: its zip, runs, cancelling, errors, models that chain algorithms."""

from __future__ import annotations

import configparser
import os
import re
import select
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio

from rsseg_cli import __version__
from rsseg_cli.weights import load_model

if TYPE_CHECKING:
    from conftest import Qgis

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = "--tile-size 64 --overlap 16 --runtime torch"
ALGORITHMS = ("adapt", "models", "polygons", "predict", "refine", "score", "suggest")
CANCEL = """
feedback = QgsProcessingFeedback()
feedback.progressChanged.connect(lambda percent: feedback.cancel())
try:
    processing.run("rsseg:predict", given, feedback=feedback)
    found = "not cancelled"
except QgsProcessingException as err:
    found = str(err)
"""
CHAIN = """
model = QgsProcessingModelAlgorithm("chain", "tests")
model.addModelParameter(QgsProcessingParameterRasterLayer("scene"), QgsProcessingModelParameter("scene"))
Value = QgsProcessingModelChildParameterSource
first = QgsProcessingModelChildAlgorithm("rsseg:predict")
first.setChildId("predict")
for name, value in given["predict"].items():
    first.addParameterSources(name, [Value.fromStaticValue(value)])
first.addParameterSources("INPUT", [Value.fromModelParameter("scene")])
second = QgsProcessingModelChildAlgorithm("rsseg:polygons")
second.setChildId("polygons")
second.addParameterSources("INPUT", [Value.fromChildOutput("predict", "OUTPUT")])
second.addParameterSources("MIN_AREA", [Value.fromStaticValue(2)])
second.addParameterSources("SQUARE", [Value.fromStaticValue(True)])
for child, name in ((first, "map"), (second, "shapes")):
    output = QgsProcessingModelOutput(name, name)
    output.setChildId(child.childId())
    output.setChildOutputName("OUTPUT")
    child.setModelOutputs({name: output})
    model.addChildAlgorithm(child)
assert model.toFile(given["file"])
model = QgsProcessingModelAlgorithm()
assert model.fromFile(given["file"])
model.initAlgorithm()
names = {item.description(): item.name() for item in model.destinationParameterDefinitions()}
outputs = {names[name]: given[name] for name in ("map", "shapes")}
processing.runAndLoadResults(model, {"scene": given["scene"], **outputs})
found = {}
for layer in QgsProject.instance().mapLayers().values():
    kind = "raster" if isinstance(layer, QgsRasterLayer) else "vector"
    renderer = layer.renderer()
    legend = (
        [item.label for item in renderer.classes()] if kind == "raster"
        else [item.label() for item in renderer.legendSymbolItems()]
    )
    found[kind] = [renderer.type(), legend]
"""
DIALOGS = """
import qgis.utils
qgis.utils.iface = None
from processing.gui.AlgorithmDialog import AlgorithmDialog
from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog
create = QgsApplication.processingRegistry().createAlgorithmById
"""
FORMS = """
found = {}
for name in given["names"]:
    algorithm = create("rsseg:" + name)
    form = AlgorithmDialog(algorithm, False, None).mainWidget()
    batch = BatchAlgorithmDialog(create("rsseg:" + name)).mainWidget()
    found[name] = [len(form.wrappers), batch.batchRowCount(), algorithm.canExecute()]
"""
BATCH = """
dialog = BatchAlgorithmDialog(create("rsseg:predict"))
table = dialog.mainWidget()
table.addRow(1)
context = QgsProcessingContext()
for row, (scene, target) in enumerate(zip(given["scenes"], given["maps"])):
    for name, value in {"INPUT": scene, **given["values"]}.items():
        table.wrappers[row][table.parameter_to_column[name]].setParameterValue(value, context)
    table.tblParameters.cellWidget(row + 1, table.parameter_to_column["OUTPUT"]).setValue(target)
table.checkLoadLayersOnCompletion.setChecked(True)
dialog.runAlgorithm()
layers = QgsProject.instance().mapLayers().values()
found = {layer.source(): [item.label for item in layer.renderer().classes()] for layer in layers}
"""
REST = """
run = lambda name, **values: processing.run("rsseg:" + name, values)
scene, labels, sure = given["scene"], given["map"], given["sure"]
options = "--tile-size 64 --runtime torch"
found = {
    "refine": run("refine", INPUT=scene, MAP=labels, REFINER_FILE=given["refiner"], OPTIONS=options,
                  OUTPUT=given["refined"]),
    "suggest": run("suggest", INPUT=scene, MAP=labels, CONFIDENCE=sure, NUMBER=4, OUTPUT=given["look"]),
    "score": run("score", MAP=given["refined"], TRUTH=labels, REPORT=given["report"]),
    "models": run("models", OUTPUT=given["models"]),
}
look = QgsVectorLayer(given["look"], "look")
squares = list(look.getFeatures())
column = look.fields().indexOf("class")
listed = look.editorWidgetSetup(column)
found["form"] = [listed.type(), [list(item) for item in listed.config().get("map", [])]]
found["legend"] = [item.label() for item in look.renderer().legendSymbolItems()]
found["area"] = sum(square.geometry().area() for square in squares)
found["empty"] = [square["class"] for square in squares]
assert look.startEditing()
for square in squares:
    look.changeAttributeValue(square.id(), column, square["predicted"])
assert look.commitChanges(), look.commitErrors()
found["adapt"] = run("adapt", INPUT=scene, LABELS=look, FIELD="class", MODEL_FILE=given["model"],
                     OPTIONS="--steps 2 --no-replay", OUTPUT=given["adapted"])
"""


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def wait_for_end(process_id: int, seconds: float = 120) -> None:
    """Wait until no such process is there."""
    try:
        handle = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([handle], [], [], seconds)
    os.close(handle)
    assert ended, f"process {process_id} is still there"


def test_the_zip_is_complete_and_the_same_each_time(plugin_zip: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "qgis" / "package.py", tmp_path], check=True, capture_output=True, umask=0o77
    )
    assert (tmp_path / plugin_zip.name).read_bytes() == plugin_zip.read_bytes()
    with zipfile.ZipFile(plugin_zip) as archive:
        names = set(archive.namelist())
        metadata = configparser.ConfigParser(interpolation=None)
        metadata.read_string(archive.read("rsseg/metadata.txt").decode())
    general = metadata["general"]
    assert {"rsseg/__init__.py", "rsseg/LICENSE", f"rsseg/{general['icon']}"} <= names
    assert all(name.startswith("rsseg/") and "__pycache__" not in name for name in names)
    assert general["version"] == __version__
    assert general["hasProcessingProvider"] == "yes"
    needed = ("name", "description", "about", "author", "qgisMinimumVersion")
    assert all(general[name] for name in needed)
    assert not any("example." in text for text in general.values())


def test_a_scene_is_mapped(qgis: Qgis, scene: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    """Names with spaces and letters beyond ASCII; Python and libraries of QGIS stay with QGIS."""
    map_path, area = tmp_path / "Karte ü 1.tif", "500010,500060,4999950,4999980 [EPSG:32633]"
    done = qgis.process(
        "run", "rsseg:predict", f"--INPUT={scene}", f"--MODEL_FILE={models[0]}", f"--OPTIONS={OPTIONS}",
        f"--EXTENT={area}", f"--OUTPUT={map_path}", f"--CONFIDENCE={tmp_path / 'sicher ß.tif'}",
        PYTHONPATH="/nowhere", LD_LIBRARY_PATH="/nowhere",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert qgis.started[1:] == ["unset", "unset"]
    inside = pixels(map_path) != 255
    assert inside.sum() == 100 * 60
    assert inside[40:100, 20:120].all()
    assert "100 - done" in done.stdout
    assert re.search(r"road: [\d.]+%, [\d.]+ ha", done.stdout)
    assert map_path.with_suffix(".qml").exists()
    assert (pixels(tmp_path / "sicher ß.tif") != 255).sum() == inside.sum()


def test_all_algorithms_are_listed(qgis: Qgis) -> None:
    listed = qgis.process("list").stdout
    assert re.findall(r"rsseg:(\w+)", listed) == list(ALGORITHMS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"MODEL_FILE": "gone.safetensors"}, "gone.safetensors"),
        ({"OPTIONS": "--overlap 300"}, "--overlap 300: needs 0 to half the tile"),
    ],
)
def test_an_error_of_the_program_is_shown(
    qgis: Qgis, scene: Path, tmp_path: Path, values: dict[str, str], words: str
) -> None:
    said = qgis.run("rsseg:predict", 1, INPUT=scene, OUTPUT=tmp_path / "map.tif", **values)
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [("/nowhere/rsseg", "/nowhere/rsseg: there is no program."), ("/bin/true", "is not rsseg")],
)
def test_a_wrong_path_of_the_program_is_named(
    qgis: Qgis, scene: Path, tmp_path: Path, path: str, words: str
) -> None:
    (settings,) = qgis.folder.rglob("QGIS3.ini")
    before = settings.read_text()
    try:
        settings.write_text(f"{before}\n[Processing]\nConfiguration\\RSSEG_PROGRAM={path}\n")
        said = qgis.run("rsseg:predict", 1, INPUT=scene, OUTPUT=tmp_path / "map.tif")
    finally:
        settings.write_text(before)
    assert words in said


@pytest.fixture
def long_run(
    make_raster: Callable[..., Path], models: tuple[Path, Path], tmp_path: Path
) -> dict[str, object]:
    """Parameters of a run of many tiles."""
    scene = make_raster(shape=(2000, 2000))
    return {"INPUT": scene, "MODEL_FILE": models[0], "OPTIONS": OPTIONS, "OUTPUT": tmp_path / "map.tif"}


def test_a_cancelled_run_ends_without_a_map(qgis: Qgis, long_run: dict[str, object], tmp_path: Path) -> None:
    assert qgis.python(CANCEL, **long_run).startswith("interrupted")
    wait_for_end(int(qgis.started[0]), seconds=0)
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_qgis_leaves_no_program(
    qgis: Qgis, long_run: dict[str, object], tmp_path: Path, number: int
) -> None:
    command = ["run", "rsseg:predict", *(f"--{name}={value}" for name, value in long_run.items())]
    running = qgis.start(*command)
    assert running.stdout is not None
    assert any(line.startswith("map ...") for line in running.stdout)
    running.send_signal(number)
    running.wait()
    running.stdout.close()
    wait_for_end(int(qgis.started[0]))
    assert not (tmp_path / "map.tif").exists()


def test_a_model_chains_algorithms_and_loads_styles(
    qgis: Qgis, scene: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    found = qgis.python(
        CHAIN, scene=scene, file=tmp_path / "chain.model3", map=tmp_path / "map.tif",
        shapes=tmp_path / "map.fgb", predict={"MODEL_FILE": str(models[0]), "OPTIONS": OPTIONS},
    )  # fmt: skip
    kind, legend = found["vector"]
    assert found["raster"] == ["paletted", ["roof", "road", "tree"]]
    assert (kind, legend[-1]) == ("categorizedSymbol", "other")
    assert {"other"} < set(legend) <= {"roof", "road", "tree", "other"}


def test_forms_have_all_parameters(qgis: Qgis) -> None:
    """Those of one run and those of a batch, which begin with one row."""
    found = qgis.python(DIALOGS + FORMS, names=ALGORITHMS)
    assert {name: rest for name, (_, *rest) in found.items()} == {
        name: [1, [True, ""]] for name in ALGORITHMS
    }
    assert found["predict"][0] == 11


@pytest.mark.slow
def test_a_batch_maps_its_scenes(
    qgis: Qgis, make_raster: Callable[..., Path], models: tuple[Path, Path], tmp_path: Path
) -> None:
    scenes = [str(make_raster(f"{name} 1.tif")) for name in "ab"]
    maps = [str(tmp_path / f"map {name}.tif") for name in "ab"]
    values = {"MODEL_FILE": models[0], "OPTIONS": OPTIONS}
    found = qgis.python(DIALOGS + BATCH, scenes=scenes, maps=maps, values=values)
    assert found == {path: ["roof", "road", "tree"] for path in maps}


@pytest.mark.slow
def test_the_other_algorithms(
    qgis: Qgis, make_raster: Callable[..., Path], models: tuple[Path, Path], tmp_path: Path
) -> None:
    scene, (model, refiner) = make_raster(shape=(200, 260)), models
    names = ("map.tif", "sure.tif", "refined.tif", "look.gpkg", "report", "models.csv", "adapted.safetensors")
    paths = {name.split(".")[0]: tmp_path / name for name in names}
    qgis.run(
        "rsseg:predict", INPUT=scene, MODEL_FILE=model, OPTIONS=OPTIONS, OUTPUT=paths["map"],
        CONFIDENCE=paths["sure"],
    )  # fmt: skip
    found = qgis.python(REST, scene=scene, model=model, refiner=refiner, **paths)
    assert pixels(paths["refined"]).shape == pixels(paths["map"]).shape
    assert found["empty"] == [""] * 4
    assert found["form"] == ["ValueMap", [["roof"], ["road"], ["tree"]]]
    assert found["legend"] == ["roof", "road", "tree", "to be filled in"]
    assert 0 < found["score"]["MIOU"] <= 1
    assert Path(found["score"]["PAGE"]).is_file()
    assert "landcover" in paths["models"].read_text()
    learnt = load_model(paths["adapted"]).spec.training["labelled_m2"]
    assert sum(learnt.values()) == pytest.approx(found["area"], rel=0.3)  # as pixels of the network
