"""Maps of a small stored model on drawn scenes: pixels, files, numbers and messages.

What a run must give whatever interrupts or shares it out is compared with the undisturbed map, to the pixel.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rasterio
from drawn_scenes import GSD_M
from golden_files import MODEL, REFINER
from program import (
    command,
    environment,
    labels,
    layout,
    masked,
    pixels,
    polygon_facts,
    polygons,
    run,
    run_apart,
    told,
    without_changing,
)

from rsseg_cli import PredictConfig, RefineConfig, predict, refine
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, save_model

MODEL_OPTIONS = ("--model", MODEL)
SMALL_TILES = ("--tile-size", "256", "--overlap", "64")
CLASSES = "building,land,road,vegetation,water"
REFINE = ("--refine", "--refiner", REFINER)
LAYERS = ("confidence", "probabilities", "heatmaps")
ALONE = {  # options, with the scene that each is run on
    "holes": ("with_holes", ()),
    "in_16_bits": ("in_16_bits", ()),
    "finer": ("finer", ()),
    "coarser": ("coarser", ()),
    "at_another_resolution": ("part", ("--gsd", "0.7")),
    "other_bands": ("part", ("-b", "3,2,1")),
    "nodata_option": ("part", ("--nodata", "120")),
    "flip": ("part", ("--tta", "flip")),
    "refined": ("part", REFINE),
}
SLOW = {
    "d4": ("part", ("--tta", "d4")),
    "scales": ("part", ("--tta", "scales")),
    "holes_refined": ("with_holes", (*REFINE, "--ensemble", "2", "--seed", "3")),
    "finer_refined": ("finer", REFINE),
    "coarser_d4": ("coarser", ("--tta", "d4")),
    "large_tiles": ("part", ("--tile-size", "640", "--overlap", "0", "--batch-size", "1")),
}


@pytest.fixture(scope="module")
def plain(scenes, tmp_path_factory):
    """The whole scene, mapped once with all that a run can write, by the default settings."""
    folder = tmp_path_factory.mktemp("plain")
    layers = [item for kind in LAYERS for item in (f"--{kind}", folder / f"{kind}.tif")]
    outputs = (
        "-o",
        folder / "map.tif",
        *layers,
        "--vector",
        folder / "map.gpkg",
        "--preview",
        folder / "map.png",
    )
    answer = run("predict", scenes.whole, *MODEL_OPTIONS, *outputs, "--json")
    return folder, answer


@pytest.fixture(scope="module")
def part_map(scenes, tmp_path_factory):
    """A part of the scene, mapped alone."""
    path = tmp_path_factory.mktemp("part") / "map.tif"
    run("predict", scenes.part, *MODEL_OPTIONS, *SMALL_TILES, "-o", path)
    return path


def test_plain(golden, plain, scenes):
    folder, answer = plain
    golden.check_labels("plain", labels(folder / "map.tif"))
    for kind in LAYERS:
        golden.check_samples(f"plain_{kind}", pixels(folder / f"{kind}.tif"))
    golden.check_json("plain_told", masked(json.loads(answer.stdout), folder))
    golden.check_text("messages/plain", without_changing(answer.stderr, scenes.folder))
    names = ["map.gpkg", "map.png", "map.tif", "map.tif.aux.xml", *(f"{kind}.tif" for kind in LAYERS)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_labels_confidence_and_probabilities_agree(plain):
    folder, _ = plain
    classes, sure, probabilities = (pixels(folder / f"{name}.tif") for name in ("map", *LAYERS[:2]))
    chosen = np.take_along_axis(probabilities, classes, axis=0)
    np.testing.assert_array_equal(chosen, sure)
    assert (probabilities <= chosen).all()


@pytest.mark.parametrize("kind", ["map", *LAYERS])
def test_layout_of_the_files(golden, plain, scenes, kind):
    folder, _ = plain
    golden.check_json(f"layout/{kind}", layout(folder / f"{kind}.tif", scenes.folder))
    names = folder / f"{kind}.tif.aux.xml"  # of classes, for QGIS
    golden.check_text(f"layout/{kind}_names", names.read_text("utf-8") if names.exists() else "")
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    assert cogeo.cog_validate(str(folder / f"{kind}.tif"), quiet=True)[:2] == (True, [])


def test_overviews_show_the_map(plain):
    """A class in an overview is one of those below it."""
    folder, _ = plain
    classes = labels(folder / "map.tif")
    with rasterio.open(folder / "map.tif", overview_level=0) as dataset:
        small = dataset.read(1)
    blocks = classes.reshape(len(small), 2, small.shape[1], 2)
    assert (blocks == small[:, None, :, None]).any(axis=(1, 3)).all()


def test_polygons_are_those_of_the_map(plain, folder):
    mapped, _ = plain
    run("vectorize", mapped / "map.tif", "-o", folder / "map.gpkg", "--confidence", mapped / "confidence.tif")
    found, expected = (polygon_facts(polygons(place / "map.gpkg")) for place in (mapped, folder))
    assert found == expected
    with rasterio.open(mapped / "map.tif") as dataset:
        pixel_m2 = abs(dataset.transform.a * dataset.transform.e)
        counts = np.bincount(dataset.read(1).ravel(), minlength=5)
    areas = [found["classes"][name]["sums"]["area_m2"] for name in sorted(found["classes"])]
    # on the ellipsoid, which differs from UTM by up to 0.2 %
    np.testing.assert_allclose(areas, counts[counts > 0] * pixel_m2, rtol=0.002)


def test_preview(golden, plain):
    from PIL import Image

    with Image.open(plain[0] / "map.png") as image:
        golden.check_json("preview", {"size": list(image.size), "mode": image.mode})
        small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1)
    golden.check_samples("preview", np.minimum(small, 254).repeat(16, 1).repeat(16, 2))


@pytest.mark.parametrize("name", [*ALONE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_kinds_of_scenes_and_settings(golden, scenes, folder, name):
    scene, options = (ALONE | SLOW)[name]
    outputs = ("-o", "map.tif", "--confidence", "sure.tif")
    answer = run("predict", getattr(scenes, scene), *MODEL_OPTIONS, *SMALL_TILES, *outputs, *options)
    golden.check_labels(name, labels(folder / "map.tif"))
    golden.check_samples(f"{name}_confidence", pixels(folder / "sure.tif"))
    golden.check_text(f"messages/{name}", told(answer, folder, scenes.folder))


def test_nodata_is_kept(scenes, folder):
    run("predict", scenes.with_holes, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif", "-q")
    with rasterio.open(scenes.with_holes) as dataset:
        np.testing.assert_array_equal(labels(folder / "map.tif") == 255, dataset.dataset_mask() == 0)


def test_a_part_of_the_scene(golden, scenes, part_map, folder):
    """By --bbox: on the scene's own grid, and nearly what the part alone gives."""
    with rasterio.open(scenes.part) as dataset:
        bounds = dataset.bounds
        grid = (dataset.transform, dataset.shape)
    answer = run("predict", scenes.whole, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif", "--bbox", *bounds)
    with rasterio.open(folder / "map.tif") as dataset:
        assert (dataset.transform, dataset.shape) == grid
    found, alone = labels(folder / "map.tif"), labels(part_map)
    golden.check_labels("bbox", found)
    assert (found == alone).mean() > 0.98
    golden.check_text("messages/bbox", told(answer, folder, scenes.folder))


def test_an_area_of_interest(golden, scenes, folder):
    """By --aoi: pixels outside its polygons have no data."""
    import geopandas
    from shapely import Point

    with rasterio.open(scenes.part) as dataset:
        x, y = dataset.xy(220, 220)
        crs = dataset.crs
    geopandas.GeoSeries([Point(x, y).buffer(80)], crs=crs).to_crs(4326).to_file(folder / "area.gpkg")
    run("predict", scenes.part, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif", "--aoi", "area.gpkg")
    found = labels(folder / "map.tif")
    golden.check_labels("aoi", found)
    assert (found != 255).sum() * GSD_M**2 == pytest.approx(np.pi * 80**2, rel=0.01)


def test_refine_alone(golden, scenes, part_map, folder):
    """`rsseg refine` changes a band around boundaries, and is what `predict --refine` does."""
    options = ("--refiner", REFINER, "--tile-size", "256", "--json")
    answer = run("refine", scenes.part, part_map, "-o", "refined.tif", *options)
    refined = labels(folder / "refined.tif")
    golden.check_labels("refined_alone", refined)
    found = json.loads(answer.stdout)
    golden.check_json("refined_alone_told", masked(found, folder))
    assert (refined != labels(part_map)).sum() == found["refined"]["changed_pixels"] > 0


@pytest.mark.slow
def test_uncertainty(golden, scenes, part_map, folder):
    run("refine", scenes.part, part_map, "-o", "r.tif", "--refiner", REFINER, "--uncertainty", "unsure.tif")
    golden.check_samples("uncertainty", pixels(folder / "unsure.tif"))


def test_library(golden, scenes, part_map, folder):
    """`predict` and `refine` give what the commands give, also for a loaded and saved model."""
    trained = load_model(MODEL)
    assert isinstance(trained, TrainedModel)
    again = save_model(folder / "again.safetensors", trained.network, trained.spec)
    assert load_model(again).spec == trained.spec
    config = PredictConfig(tile_size=256, overlap=64)
    for name, model in (("loaded", trained), ("saved", again)):
        result = predict(scenes.part, folder / f"{name}.tif", model=model, config=config)
        np.testing.assert_array_equal(labels(result.paths["labels"]), labels(part_map))
    golden.check_json("library_result", masked(result.as_dict(), folder))
    result = predict(
        scenes.part, folder / "r.tif", model=MODEL, config=config, refine=RefineConfig(refiner=str(REFINER))
    )
    alone = refine(
        scenes.part, part_map, folder / "alone.tif", config=RefineConfig(refiner=str(REFINER)), tile_size=256
    )
    assert result.refined is not None
    equal = labels(folder / "r.tif") == labels(folder / "alone.tif")
    assert equal.mean() > 0.999
    assert alone.refined is not None


def test_a_network_of_ones_own(scenes, folder):
    """The class of a pixel's brightest band; not one is moved."""
    import torch

    class Brightest(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 20 * image

    spec = ModelSpec.for_network(classes=["red", "green", "blue"], bands=("red", "green", "blue"))
    predict(scenes.part, folder / "map.tif", model=TrainedModel(Brightest(), spec), tile_size=256, overlap=64)
    image = pixels(scenes.part) / 255
    scaled = (image - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    equal = labels(folder / "map.tif") == scaled.argmax(0)
    assert equal.mean() > 0.9999


def test_resumed_after_a_kill(golden, scenes, part_map, folder):
    """A run that is killed goes on, to the pixels of the undisturbed map."""
    arguments = ("predict", scenes.part, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif")
    kill_in_the_middle(arguments, folder)
    assert not (folder / "map.tif").exists()
    answer = run(*arguments, "--resume")
    assert "anew" not in answer.stderr
    golden.check_text("messages/resumed", without_changing(answer.stderr, folder))
    np.testing.assert_array_equal(labels(folder / "map.tif"), labels(part_map))
    answer = run(*arguments, "--resume")
    golden.check_text("messages/resumed_complete", without_changing(answer.stderr, folder))
    assert sorted(path.name for path in folder.iterdir()) == ["map.tif", "map.tif.aux.xml"]


@pytest.mark.slow
def test_resumed_with_all_outputs(plain, scenes, folder):
    """The same of the whole scene with polygons; it is killed twice."""
    mapped, _ = plain
    arguments = ["predict", scenes.whole, *MODEL_OPTIONS, "-o", "map.tif", "--confidence", "confidence.tif"]
    arguments += ["--vector", "map.gpkg", "--resume"]
    for _ in range(2):
        kill_in_the_middle(arguments, folder)
    assert "anew" not in run(*arguments).stderr
    for name in ("map", "confidence"):
        np.testing.assert_array_equal(pixels(folder / f"{name}.tif"), pixels(mapped / f"{name}.tif"))
    found, expected = (polygon_facts(polygons(place / "map.gpkg")) for place in (folder, mapped))
    assert found == expected


def kill_in_the_middle(arguments: Sequence[object], folder: Path) -> None:
    """Start a run, and kill it by SIGKILL once it has noted which rows are done.

    A run does so every few seconds. It is held for as long, so that it does so before it is through.
    """
    work = folder / ".map.tif.rsseg"
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    before = notes(work)
    try:
        wait(lambda: any(work.glob("*.tif*")) or notes(work) != before, process)
        process.send_signal(signal.SIGSTOP)
        before = notes(work)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)
        wait(lambda: notes(work) != before, process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def notes(work: Path) -> dict[str, str]:
    """What a run notes in the hidden folder beside its map."""
    return {path.name: path.read_text("utf-8") for path in work.glob("*.json")}


def wait(ready, process: subprocess.Popen[bytes]) -> None:
    """Until something is ready; the process must not end before."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batch_of_sheets(golden, scenes, folder):
    """Two processes; a sheet that lacks a band fails alone, and `--resume` does what is left."""
    sheets = [Path(shutil.copy(path, folder)) for path in scenes.sheets]
    whole = sheets[1].read_bytes()
    with rasterio.open(sheets[1]) as dataset:
        array, profile = dataset.read([1, 2]), dataset.profile | {"count": 2, "photometric": "minisblack"}
    with rasterio.open(sheets[1], "w", **profile) as dataset:
        dataset.write(array)
    arguments = ("predict", *(path.name for path in sheets), "-o", "maps", *MODEL_OPTIONS, *SMALL_TILES)
    arguments = (*arguments, "--confidence", "_sure", "--vector", "fgb", "--jobs", "2")
    answer = run_apart(*arguments, folder=folder, exit_code=3)
    golden.check_text("messages/batch", in_order(told(answer, folder)))
    golden.check_json("batch_manifest", manifest(folder))
    golden.check_json("batch_files", sorted(path.name for path in (folder / "maps").iterdir()))
    sheets[1].write_bytes(whole)
    answer = run(*arguments, "--resume", "--jobs", "1", "--json")
    golden.check_json("batch_resumed_told", masked(json.loads(answer.stdout), folder))
    golden.check_json("batch_resumed_manifest", manifest(folder))
    (folder / "alone").mkdir()
    for sheet in sheets:
        run("predict", sheet, *MODEL_OPTIONS, *SMALL_TILES, "-o", folder / "alone" / sheet.name, "-q")
        mapped = folder / "maps" / f"{sheet.stem}_small.tif"
        np.testing.assert_array_equal(labels(mapped), labels(folder / "alone" / sheet.name))


def manifest(folder: Path) -> list[object]:
    """Lines of a batch's manifest in the order of inputs; a scene's own in the order of time."""
    lines = (folder / "maps" / "manifest.jsonl").read_text("utf-8").splitlines()
    return masked(sorted(map(json.loads, lines), key=lambda line: line["input"]), folder)


def in_order(text: str) -> str:
    """Lines that say that a scene is done come in any order where several processes are at work."""
    lines = text.splitlines(keepends=True)
    places = [index for index, line in enumerate(lines) if "/4] " in line]
    done = sorted(lines[index].partition("/4] ")[2] for index in places)
    for index, line in zip(places, done, strict=True):
        lines[index] = f"rsseg: [N/4] {line}"
    return "".join(lines)


def test_mosaic_of_sheets(golden, scenes, folder):
    """Sheets are cut from one map: no seams, and the pixels of the whole."""
    for path in scenes.sheets:
        shutil.copy(path, folder)
    names = [path.name for path in scenes.sheets]
    options = ("--mosaic", *MODEL_OPTIONS, *SMALL_TILES, "--vector", "gpkg", "--json")
    answer = run("predict", *names, "-o", "maps", *options)
    golden.check_json("mosaic_told", masked(json.loads(answer.stdout), folder))
    golden.check_json("mosaic_manifest", manifest(folder))
    with rasterio.open(scenes.whole) as dataset:
        array, transform = dataset.read(window=((512, 1312), (512, 1216))), dataset.transform
        profile = dataset.profile | {"height": 800, "width": 704}
        profile["transform"] = transform * transform.translation(512, 512)
    with rasterio.open("whole.tif", "w", **profile) as dataset:
        dataset.write(array)
    run("predict", "whole.tif", *MODEL_OPTIONS, *SMALL_TILES, "-o", "whole_map.tif", "--vector", "whole.gpkg")
    maps = [labels(folder / "maps" / f"{Path(name).stem}_small.tif") for name in names]
    whole = labels(folder / "whole_map.tif")
    np.testing.assert_array_equal(np.block([maps[:2], maps[2:]]), whole)
    [vector] = (folder / "maps").glob("*.gpkg")
    found, expected = (polygon_facts(polygons(path)) for path in (vector, folder / "whole.gpkg"))
    assert found["sha256"] == expected["sha256"]


@pytest.mark.slow
def test_engine_ray(golden, scenes, folder):
    """A batch, and one scene that is shared out by rows, give the pixels that they give without Ray."""
    pytest.importorskip("ray")
    names = [shutil.copy(path, folder) for path in scenes.sheets[:2]]
    options = (*MODEL_OPTIONS, *SMALL_TILES, "--vector", "fgb")
    for engine, place in ((("--engine", "ray", "--jobs", "2"), "ray"), ((), "here")):
        answer = run_apart("predict", *names, "-o", place, *options, *engine, "--json", folder=folder)
        assert json.loads(answer.stdout)["done"] == 2
        one = ("-o", f"{place}/one.tif", *MODEL_OPTIONS, *SMALL_TILES, *REFINE, *engine)
        run_apart("predict", scenes.part, *one, folder=folder)
    for path in sorted((folder / "here").glob("*.tif")):
        np.testing.assert_array_equal(labels(path), labels(folder / "ray" / path.name))
    for path in sorted((folder / "here").glob("*.fgb")):
        assert polygon_facts(polygons(path)) == polygon_facts(polygons(folder / "ray" / path.name))


@pytest.mark.slow
def test_interrupted(golden, scenes, folder):
    """Ctrl-C: exit code 130, no output, and how to go on where rows were kept."""
    arguments = ("predict", scenes.whole, *MODEL_OPTIONS, "-o", "map.tif", "--batch-size", "1")
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait((folder / ".map.tif.rsseg").exists, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "rsseg: interrupted" in stderr
    assert not (folder / "map.tif").exists()


def test_score(golden, scenes, part_map, folder):
    arguments = ("score", part_map, scenes.part_labels, "--classes", CLASSES, "--image", scenes.part)
    answer = run(*arguments, "--json", "--report", "report")
    golden.check_json("score", masked(json.loads(answer.stdout), folder, part_map.parent, scenes.folder))
    facts = report_facts(folder / "report")
    golden.check_json("score_report", masked(facts, folder, part_map.parent, scenes.folder))
    golden.check_text("messages/score", told(run(*arguments), folder, part_map.parent, scenes.folder))


def test_eval(golden, scenes, folder):
    data = labelled(scenes, folder)
    answer = run("eval", "--model", MODEL, "--data", data, *SMALL_TILES, "--json", "--report", "report")
    golden.check_json("eval", masked(json.loads(answer.stdout), folder))
    golden.check_json("eval_report", masked(report_facts(folder / "report"), folder))
    golden.check_text("messages/eval", without_changing(answer.stderr, folder))


@pytest.mark.slow
def test_eval_against_the_refined_maps(golden, scenes, folder):
    data = labelled(scenes, folder)
    options = (*SMALL_TILES, "--refine", "--refiner", REFINER)
    answer = run("eval", "--model", MODEL, "--data", data, *options, "--json")
    golden.check_json("eval_refined", masked(json.loads(answer.stdout), folder))
    text = told(run("eval", "--model", MODEL, "--data", data, *options), folder)
    golden.check_text("messages/eval_refined", text)


def labelled(scenes, folder: Path) -> Path:
    """A folder as `rsseg eval --data` reads it: the part of the scene and its labels."""
    for kind, path in (("images", scenes.part), ("masks", scenes.part_labels)):
        (folder / "data" / kind).mkdir(parents=True)
        shutil.copy(path, folder / "data" / kind / "part.tif")
    return folder / "data"


HEADINGS = ("h1", "h2", "h3")


class ReportPage(HTMLParser):
    """What a report shows, without its markup: headings, tables' cells, how many pictures and charts."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.pictures = self.charts = 0
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "img"
        self.charts += tag == "svg"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")
        elif tag in HEADINGS:
            self.headings.append("")
        if tag in (*HEADINGS, "td", "th"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        if self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()
        else:
            self.headings[-1] += data.strip()


def report_facts(folder: Path) -> dict[str, object]:
    """Files of a report; headings and table heads of its page, and how much of each kind it shows."""
    [page] = folder.glob("*.html")
    parser = ReportPage()
    parser.feed(page.read_text("utf-8"))
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
        "headings": parser.headings,
        "pictures": parser.pictures,
        "charts": parser.charts,
        "tables": [
            {"head": rows[0], "rows": len(rows), "first": [number(row[0]) for row in rows if row]}
            for rows in parser.tables
        ],
        "numbers": [
            [number(cell) for row in rows[1:] for cell in row[1:] if isinstance(number(cell), float)]
            for rows in parser.tables
        ],
    }


def number(cell: str) -> float | str:
    """A cell's number, or its text."""
    try:
        return float(cell.rstrip("%").replace(",", ""))
    except ValueError:
        return cell
