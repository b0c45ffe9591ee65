"""Output rasters: exact, whole or absent, valid for other programs."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasters import MakeRaster
from rio_cogeo import cog_validate

from rsseg_cli.errors import OutputError, UsageError
from rsseg_cli.files import check_target
from rsseg_cli.raster import Grid, RasterWriter, SceneInfo, vrt
from rsseg_cli.raster.rows import downsample2x

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.3, 0, 500000.123456789, 0, -0.3, 5000000.1)
GEOREFERENCES = {
    "north-up": (UTM, NORTH_UP),
    "rotated": (UTM, Affine.translation(500000, 5000000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)),
    "south-up": (UTM, Affine(0.5, 0, 500000, 0, 0.5, 5000000)),
    "degrees": (CRS.from_epsg(4326), Affine(1e-5 / 3, 0, 15, 0, -1e-5 / 3, 45)),
    "no crs": (None, Affine(0.1, 0, 7, 0, -0.1, 9)),
    "no georeference": (None, Affine.identity()),
}
COLOURS = {0: (214, 69, 65), 1: (222, 203, 164)}


def grid_of(height: int, width: int, georeference: tuple = GEOREFERENCES["north-up"]) -> Grid:
    return Grid(crs=georeference[0], transform=georeference[1], height=height, width=width)


def draw_labels(height: int, width: int, bands: int = 1, classes: int = 5) -> np.ndarray:
    """Blobs with single odd pixels and a corner without data."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, classes, (bands, height // 16 + 1, width // 16 + 1)).astype(np.uint8)
    labels = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width].copy()
    labels[rng.random(labels.shape) < 0.02] = 3
    labels[:, : height // 3, : width // 3] = 255
    return labels


def write_all(path: Path, labels: np.ndarray, grid: Grid, step: int = 37, **options: object) -> None:
    how = {name: options.pop(name) for name in ("options", "overwrite") if name in options}
    with RasterWriter(path, grid, vrt.RasterMeta(count=len(labels), **options), **how) as writer:
        for row in range(0, grid.height, step):
            writer.write(row, labels[:, row : row + step])
        writer.commit()


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


# --- what is written is what is read


@pytest.mark.parametrize("georeference", GEOREFERENCES.values(), ids=GEOREFERENCES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (513, 1), (512, 512), (600, 1100)])
def test_pixels_and_georeference_come_back_exactly(
    tmp_path: Path, georeference: tuple, shape: tuple[int, int]
) -> None:
    labels = draw_labels(*shape)
    write_all(tmp_path / "map.tif", labels, grid_of(*shape, georeference))
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.read() == labels).all()
        assert dataset.crs == georeference[0]
        assert tuple(dataset.transform) == tuple(georeference[1])
        assert (dataset.nodata, dataset.dtypes) == (255, ("uint8",))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", [1, 384, 511, 512, 513, 1300])
def test_rows_of_any_count(tmp_path: Path, step: int) -> None:
    labels = draw_labels(1300, 90)
    write_all(tmp_path / "map.tif", labels, grid_of(1300, 90), step)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.read() == labels).all()


@pytest.mark.parametrize("bands", [1, 5])
@pytest.mark.parametrize("overviews", ["mode", "average"])
@pytest.mark.parametrize("shape", [(40, 30), (1025, 1500), (1, 3000)])
def test_outputs_are_valid_cogs(tmp_path: Path, bands: int, overviews: str, shape: tuple[int, int]) -> None:
    path = tmp_path / "map.tif"
    write_all(path, draw_labels(*shape, bands), grid_of(*shape), 512, overviews=overviews)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    assert SceneInfo.of(path).overviews == {1025: (2, 4), 40: (), 1: (2, 4, 8)}[shape[0]]


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="gdalinfo is not installed")
def test_gdalinfo_sees_names_colours_and_tags(tmp_path: Path) -> None:
    path = tmp_path / 'a <b> & "c" é.tif'
    tags = {"RSSEG_MODEL": "landcover", "NOTE": 'a<b> & "c" é'}
    options = {"colours": COLOURS, "category_names": ["building", "land & <x>"], "band_names": ["class"]}
    write_all(path, draw_labels(600, 700), grid_of(600, 700), tags=tags, **options)
    answer = subprocess.run(["gdalinfo", "-json", str(path)], capture_output=True, check=True, text=True)
    described = json.loads(answer.stdout)
    assert tags.items() <= described["metadata"][""].items()
    assert described["metadata"][""]["CLASS_1"] == "land & <x>"
    assert described["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    band = described["bands"][0]
    assert (band["description"], band["noDataValue"], band["colorInterpretation"]) == (
        "class",
        255,
        "Palette",
    )
    assert band["colorTable"]["entries"][:2] == [[*COLOURS[0], 255], [*COLOURS[1], 255]]
    text = subprocess.run(["gdalinfo", str(path)], capture_output=True, check=True, text=True).stdout
    assert "0: building\n" in text
    assert "1: land & <x>\n" in text


def test_band_names(tmp_path: Path) -> None:
    path = tmp_path / "probabilities.tif"
    write_all(path, draw_labels(20, 30, 3), grid_of(20, 30), band_names=["a", "b", "c"], overviews="average")
    with rasterio.open(path) as dataset:
        assert dataset.descriptions == ("a", "b", "c")
        assert [kind.name for kind in dataset.colorinterp][1:] == ["undefined", "undefined"]


def test_creation_options_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    options = {"COMPRESS": "ZSTD", "blocksize": "256"}
    write_all(path, draw_labels(600, 700), grid_of(600, 700), options=options)
    with rasterio.open(path) as dataset:
        assert (dataset.compression.name, dataset.block_shapes) == ("zstd", [(256, 256)])


# --- overviews


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("shape", [(40, 30), (1100, 1500), (1, 3000)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"COMPRESS": "NONE"},
        {"compress": "zstd", "LEVEL": "3", "PREDICTOR": "YES", "BLOCKSIZE": "128"},
        {"COMPRESS": "LZW", "BIGTIFF": "YES", "NUM_THREADS": "ALL_CPUS"},
    ],
    ids=str,
)
def test_files_are_those_of_gdal_byte_by_byte(
    tmp_path: Path, bands: int, shape: tuple[int, int], options: dict[str, str]
) -> None:
    path, again = tmp_path / "map.tif", tmp_path / "again.tif"
    write_all(path, draw_labels(*shape, bands), grid_of(*shape), 100, options=options, tags={"A": "b"})
    given = {"COMPRESS": "DEFLATE", "BLOCKSIZE": "512", "BIGTIFF": "IF_SAFER"}
    given |= {key.upper(): value for key, value in options.items()}
    rasterio.shutil.copy(str(path), str(again), driver="COG", **given)
    assert path.read_bytes() == again.read_bytes()


def test_class_overviews_hold_only_classes_that_are_there(tmp_path: Path) -> None:
    labels = np.where(np.random.default_rng(0).random((1, 1200, 1200)) < 0.5, 0, 200).astype(np.uint8)
    write_all(tmp_path / "map.tif", labels, grid_of(1200, 1200))
    with rasterio.open(tmp_path / "map.tif", overview_level=1) as dataset:
        assert set(np.unique(dataset.read())) == {0, 200}


@pytest.mark.parametrize(
    ("four", "mode", "average"),
    [
        ((1, 1, 2, 3), 1, 2),
        ((1, 2, 2, 3), 2, 2),
        ((1, 2, 3, 3), 3, 2),
        ((3, 2, 1, 1), 1, 2),
        ((4, 1, 2, 3), 4, 3),
        ((255, 255, 255, 7), 7, 7),
        ((255, 255, 255, 255), 255, 255),
        ((255, 255, 1, 2), 1, 2),
        ((255, 1, 2, 2), 2, 2),
        ((254, 254, 254, 254), 254, 254),
        ((0, 0, 0, 1), 0, 0),
        ((0, 254, 255, 255), 0, 127),
    ],
)
def test_halving_four_pixels(four: tuple[int, ...], mode: int, average: int) -> None:
    rows = np.array(four, np.uint8).reshape(1, 2, 2)
    assert downsample2x(rows, "mode").tolist() == [[[mode]]]
    assert downsample2x(rows, "average").tolist() == [[[average]]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 5), (4, 6)])
def test_halving_rounds_up(shape: tuple[int, int]) -> None:
    rows = draw_labels(*shape)
    assert downsample2x(rows, "mode").shape == (1, -(-shape[0] // 2), -(-shape[1] // 2))


def test_overviews_do_not_depend_on_how_rows_arrive(tmp_path: Path) -> None:
    labels = draw_labels(1301, 1111)
    read = []
    for step in (1, 700, 1301):
        write_all(tmp_path / f"{step}.tif", labels, grid_of(1301, 1111), step)
        with rasterio.open(tmp_path / f"{step}.tif", overview_level=0) as dataset:
            read.append(dataset.read())
    assert (read[0] == read[1]).all()
    assert (read[0] == read[2]).all()
    assert (read[0] == downsample2x(labels, "mode")).all()


# --- whole or not at all


def test_nothing_appears_before_commit(tmp_path: Path) -> None:
    labels = draw_labels(30, 40)
    with RasterWriter(tmp_path / "map.tif", grid_of(30, 40)) as writer:
        writer.write(0, labels)
        assert not (tmp_path / "map.tif").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_errors_leave_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "map.tif"
    write_all(path, draw_labels(30, 40), grid_of(30, 40))
    before = path.read_bytes()

    def fail_midway() -> None:
        with RasterWriter(path, grid_of(30, 40), overwrite=True) as writer:
            writer.write(0, draw_labels(30, 40)[:, :10])
            raise error

    with pytest.raises(error):
        fail_midway()
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == []


def test_a_finished_file_waits_for_its_name(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_text("old")
    labels, grid = draw_labels(20, 20), grid_of(20, 20)
    with RasterWriter(path, grid, vrt.RasterMeta(category_names=["building"]), overwrite=True) as writer:
        writer.write(0, labels)
        with pytest.raises(ValueError, match="not finished"):
            writer.publish()
        writer.finish()
        assert path.read_text() == "old"
        assert not Path(f"{path}.aux.xml").exists()
        writer.publish()
    with rasterio.open(path) as dataset:
        assert (dataset.read() == labels).all()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]


def test_replacing_takes_the_old_files_companions_away(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    write_all(path, draw_labels(30, 40), grid_of(30, 40), category_names=["old"], colours=COLOURS)
    (tmp_path / "map.tif.ovr").write_bytes(b"old")
    write_all(path, draw_labels(30, 40), grid_of(30, 40), overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"map.tif", "map.qml"}  # it may be the user's


def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    labels, grid = draw_labels(30, 40), grid_of(30, 40)
    with (
        RasterWriter(tmp_path / "a.tif", grid) as first,
        RasterWriter(tmp_path / "a.tif.b.tif", grid) as second,
    ):
        first.write(0, labels)
        second.write(0, labels)
        first.commit()
        second.commit()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tif", "a.tif.b.tif"]


def test_missing_rows_are_not_committed(tmp_path: Path) -> None:
    with RasterWriter(tmp_path / "map.tif", grid_of(30, 40)) as writer:
        writer.write(0, draw_labels(30, 40)[:, :29])
        with pytest.raises(ValueError, match="29 of 30 rows"):
            writer.commit()


@pytest.mark.parametrize(
    ("row", "array", "message"),
    [
        (0, np.zeros((1, 10, 41), np.uint8), r"needs \(1, rows, 40\)"),
        (0, np.zeros((2, 10, 40), np.uint8), r"needs \(1, rows, 40\)"),
        (0, np.zeros((10, 40), np.uint8), r"needs \(1, rows, 40\)"),
        (0, np.zeros((1, 10, 40), np.float32), "is float32, needs uint8"),
        (0, np.zeros((1, 31, 40), np.uint8), "rows 0 to 31, due 0 to 30"),
        (1, np.zeros((1, 10, 40), np.uint8), "rows 1 to 11, due 0 to 30"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, row: int, array: np.ndarray, message: str) -> None:
    with (
        RasterWriter(tmp_path / "map.tif", grid_of(30, 40)) as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.write(row, array)


def test_rows_above_a_cut_survive_a_kill_and_are_taken_over(tmp_path: Path) -> None:
    """Cuts at odd rows, so that a row waits for the next file's first one to be halved."""
    cuts = (0, 301, 301, 702, 1003, 1300)
    program = f"""
import os, sys, signal
sys.path[:0] = {sys.path!r}
from test_raster_output import *
writer = RasterWriter(Path({str(tmp_path / "map.tif")!r}), grid_of(1300, 1100), cuts={cuts},
                      temporary=lambda ending: Path({str(tmp_path)!r}) / f"labels.{{ending}}")
for row in range(0, 1000, 100):
    writer.write(row, draw_labels(1300, 1100)[:, row:row + 100])
print(*[path.name for path in writer.complete_files()])
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["labels.0.tif", "labels.301.tif"]
    labels, grid = draw_labels(1300, 1100), grid_of(1300, 1100)
    with RasterWriter(
        tmp_path / "map.tif", grid, cuts=cuts, temporary=lambda ending: tmp_path / f"labels.{ending}"
    ) as writer:
        for row, rows in writer.resume_from(702):
            np.testing.assert_array_equal(rows, labels[:, row : row + rows.shape[1]])
        writer.write(702, labels[:, 702:])
        writer.commit()
        writer.drop_rows()
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]
    write_all(tmp_path / "b.tif", labels, grid)
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_damaged_parts_are_reported(tmp_path: Path) -> None:
    def writer() -> RasterWriter:
        return RasterWriter(
            tmp_path / "map.tif",
            grid_of(90, 40),
            cuts=(0, 50, 90),
            temporary=lambda ending: tmp_path / ending,
        )

    labels = draw_labels(90, 40)
    with writer() as first:
        first.write(0, labels[:, :60])
    with writer() as second, pytest.raises(ValueError, match="no whole number of parts"):
        list(second.resume_from(60))
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:90]), lambda path: path.unlink()):
        damage(tmp_path / "0.tif")
        with writer() as second, pytest.raises(OutputError, match=r"are damaged.*without --resume"):
            list(second.resume_from(50))


# --- refused before work starts


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(b"mine")
    for refuse in (lambda: check_target(path), lambda: RasterWriter(path, grid_of(3, 4))):
        with pytest.raises(OutputError, match=r"exists\. Pass --overwrite"):
            refuse()
    check_target(path, overwrite=True)
    assert path.read_bytes() == b"mine"


def test_the_input_is_never_replaced(make_raster: MakeRaster, tmp_path: Path) -> None:
    scene = make_raster()
    (tmp_path / "link.tif").symlink_to(scene)
    for target in (scene, tmp_path / "link.tif", tmp_path / "." / "scene.tif"):
        with pytest.raises(OutputError, match="is the input itself"):
            check_target(target, overwrite=True, inputs=[scene])
    check_target(tmp_path / "map.tif", inputs=["https://example.com/scene.tif"])


def test_folders_are_checked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder does not exist"):
        check_target(tmp_path / "nowhere" / "map.tif")
    with pytest.raises(OutputError, match="is a folder"):
        check_target(tmp_path, overwrite=True)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        check_target(tmp_path / "map.tif")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"COMPRES": "ZSTD"}, "COMPRES"),
        ({"COMPRESS": "ZIPPED"}, "ZIPPED"),
        ({"BLOCKSIZE": "many"}, "many"),
        ({"BLOCKXSIZE": "256"}, "BLOCKXSIZE"),
        ({"BLOCKSIZE": "100"}, "BLOCKSIZE"),
        ({"COMPRESS": "jpeg"}, "lose pixel values"),
        ({"TILING_SCHEME": "GoogleMapsCompatible"}, "keep the scene's grid"),
    ],
)
def test_creation_options_are_checked(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RasterWriter(tmp_path / "map.tif", grid_of(3, 4), options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"COMPRESS": "LZW"}, {"compress": "zstd", "LEVEL": "3", "PREDICTOR": "YES"}, {"BIGTIFF": "YES"}],
)
def test_good_creation_options_pass(options: dict[str, str]) -> None:
    RasterWriter.check_options(options)


@pytest.mark.parametrize("limit", [20_000, 300_000])
def test_a_full_disk_is_reported(tmp_path: Path, limit: int) -> None:
    labels = np.random.default_rng(0).integers(0, 200, (1, 1100, 600)).astype(np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write_all(tmp_path / "map.tif", labels, grid_of(1100, 600))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
