"""Bad and odd inputs: each ends with the right exit code and one clear line, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hard_models as models
import hard_scenes as scenes
import hard_vectors as vectors
import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.raster import SceneInfo, SceneReader
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
SMALL = ("--tile-size", "64", "--overlap", "16")


@dataclass(frozen=True, kw_only=True)
class Case:
    """An input and what is to come of it.

    Attributes:
        make: writes the files into a folder.
        arguments: of `rsseg predict`, or of another command where `command` names it.
        code, message: exit code, and words on stderr.
        empty_px: of a good one's map, pixels without data; None does not look.
        output: name of what it makes.
        slow: takes more than a few seconds.
    """

    make: Callable[..., Any]
    arguments: tuple[str, ...] = ("scene.tif",)
    command: str = "predict"
    code: int = 1
    message: str = ""
    empty_px: int | None = None
    output: str = "m.tif"
    slow: bool = False


def good(
    make: Callable[..., Any], *arguments: str, note: str = "", empty_px: int | None = 0, **more: Any
) -> Case:
    return Case(
        make=make, arguments=arguments or ("scene.tif",), code=0, message=note, empty_px=empty_px, **more
    )


def bad(make: Callable[..., Any], message: str, *arguments: str, code: int = 1, **more: Any) -> Case:
    return Case(make=make, arguments=arguments or ("scene.tif",), message=message, code=code, **more)


def bad_model(make: Callable[..., Any], message: str, **more: Any) -> Case:
    return bad(make, message, "scene.tif", "--model", "bad.safetensors", **more)


FILES = {
    "empty file": bad(scenes.empty, "not recognized"),
    "text named .tif": bad(scenes.text, "rsseg: error: scene.tif: "),
    "PNG named .tif": good(scenes.png_named_tif, note="has no CRS"),
    "cut in its directory": bad(scenes.cut(0.01), "scene.tif"),
    "cut in its pixels": bad(scenes.cut(0.6), "cannot be read"),
    "a block that cannot be decoded": bad(scenes.undecodable_block, "cannot be read"),
    "damaged overview, read in full": good(scenes.damaged_overview),
    "damaged overview, read through it": bad(
        scenes.damaged_overview, "cannot be read", "scene.tif", "--gsd", "2.1"
    ),
    "folder as scene": bad(scenes.directory, "several scenes need a folder for their maps", code=2),
    "empty folder as scenes": bad(scenes.directory, "scene.tif: holds no scene", code=2, output="maps"),
    "no such scene": bad(scenes.plain, "none.tif: No such file", "none.tif"),
    "symlink loop": bad(scenes.symlink_loop, "scene.tif"),
    "/dev/null": bad(scenes.fifo_like, "not recognized"),
    "zero bands": bad(scenes.no_bands, "Missing one of rasterXSize, rasterYSize or bands"),
    "unknown address": bad(scenes.plain, "nowhere://x.tif", "nowhere://x.tif"),
    "BigTIFF": good(scenes.big_tiff),
    "JPEG in YCbCr": good(scenes.jpeg_ycbcr),
    "inside a zip": good(scenes.zip_of_scene, "/vsizip/scene.zip/inside.tif"),
}
CLAIMS = {
    "header of 2^31 px": bad(scenes.gigantic_header, "scene.tif"),
    "tag of 4 GiB": bad(scenes.gigantic_tag, "scene.tif"),
    "virtual raster of 2^31 px": bad(scenes.gigantic_vrt(2**31 - 1, 2**31 - 1), "2147483647"),
    "virtual raster 2^31 px wide": bad(scenes.gigantic_vrt(2**31 - 1, 1), "2147483647"),
    "virtual raster 2^31 px high": bad(scenes.gigantic_vrt(1, 2**31 - 1), "2147483647"),
    "sparse, 2^24 px a side": bad(
        scenes.gigantic_sparse(2**24, 2**24),
        "16777216 px wide, of which a row of tiles takes at least",
        "scene.tif",
        "--tile-size",
        "4096",
        "--overlap",
        "2048",
    ),
    "metadata of 5 MB": good(scenes.metadata(5_000_000)),
    "metadata of 100 MB": good(scenes.metadata(100_000_000), slow=True),
}
VIRTUAL = {
    "nested VRT to nowhere": bad(scenes.vrt_to_nowhere, "cannot be read"),
    "VRT of itself": bad(scenes.vrt_of_itself, "opened in a cascaded way"),
    "VRTs in a circle": bad(scenes.vrt_circle, "opened in a cascaded way"),
    "VRT with Python code": bad(scenes.vrt_python, "scene.tif"),
    "VRT with XML entities": good(scenes.vrt_entities),
    "VRT nested 10,000 deep": bad(scenes.vrt_deep, "scene.tif"),
    "VRT with NaN in its transform": bad(scenes.not_finite_transform, "its transform"),
}
PIXELS = {
    "NaN and infinities": good(scenes.not_finite, empty_px=12 * 48),
    "nothing but NaN": good(scenes.no_number_at_all, empty_px=48 * 48),
    "floats near the type's end": good(scenes.huge_floats),
    "complex numbers": bad(scenes.as_dtype("complex64"), "complex numbers"),
    "1 bit": good(scenes.one_bit),
    "palette": good(scenes.palette),
    "palette, one band thrice": bad(scenes.palette, "Expand its palette first", "scene.tif", "-b", "1,1,1"),
    "one band": bad(
        lambda d: scenes.write(d / "scene.tif", scenes.noise(1)), "1 band (uint8), model 'tiny' needs 3"
    ),
    "all transparent": good(scenes.alpha_all_transparent, empty_px=48 * 48),
    "all nodata": good(scenes.all_nodata, empty_px=48 * 48),
    "nodata outside the type": good(scenes.odd_nodata),
    "1 x 1 px": good(scenes.of_shape(1, 1)),
    "1 px high, 100,000 wide": good(
        scenes.of_shape(1, 100_000), "scene.tif", "--tile-size", "2048", "--overlap", "0"
    ),
    "int8": good(scenes.as_dtype("int8")),
    "int64": good(scenes.as_dtype("int64")),
    "uint64": good(scenes.as_dtype("uint64")),
    "float64": good(scenes.as_dtype("float64")),
    "mask file of another size": good(scenes.msk_of_other_size),
    "mask file of text": good(scenes.msk_of_text),
}
GRIDS = {
    "no CRS": good(scenes.with_profile(crs=None), note="has no CRS"),
    "local CRS": good(scenes.with_profile(crs=scenes.LOCAL_CRS)),
    "custom projection": good(scenes.with_profile(crs=scenes.CUSTOM_PROJ)),
    "south-up": good(scenes.with_profile(transform=scenes.Affine(0.5, 0, 5e5, 0, 0.5, 5e6))),
    "rotated": good(scenes.with_profile(transform=scenes.NORTH_UP * scenes.Affine.rotation(30))),
    "world file": good(scenes.world_file, note="has no CRS"),
    "world file of words": good(scenes.broken_world_file, note="has no CRS"),
    "world file of zeros": good(scenes.zero_world_file, note="has no CRS"),
    "ground control points": good(scenes.gcps, note="ground control points"),
    "RPCs": good(scenes.rpcs, note="RPCs"),
    "antimeridian": good(
        scenes.with_profile(crs="EPSG:4326", transform=scenes.Affine(1e-5, 0, 179.9998, 0, -1e-5, 10))
    ),
    "pole": good(
        scenes.with_profile(crs="EPSG:4326", transform=scenes.Affine(1e-5, 0, 10, 0, -1e-5, 90.0002))
    ),
    "beyond the pole": good(
        scenes.with_profile(crs="EPSG:4326", transform=scenes.Affine(1, 0, 10, 0, -1, 500))
    ),
    "pixels of 1e-12 degrees": good(
        scenes.with_profile(crs="EPSG:4326", transform=scenes.Affine(1e-12, 0, 10, 0, -1e-12, 47))
    ),
    "pixels of 1e160 m": bad(
        scenes.with_profile(transform=scenes.Affine(1e160, 0, 0, 0, -1e160, 0)), "numbers too large"
    ),
    "pixels of 1e-113 m, 1e289 m away": bad(
        scenes.with_profile(transform=scenes.Affine(5e-113, 0, 5e5, 0, -5e-188, -9e289)), "numbers too large"
    ),
    "pixels of 1e30 m": good(scenes.with_profile(transform=scenes.Affine(1e30, 0, 0, 0, -1e30, 0))),
    "box of NaN": bad(scenes.plain, "--bbox", "scene.tif", "--bbox", "nan", "nan", "nan", "nan", code=2),
}
SIDECARS = {
    "sidecar with entities": good(scenes.hostile_sidecar),
    "sidecar of 5 MB": good(scenes.huge_sidecar),
    "tags that are not UTF-8": good(scenes.tags_not_utf8),
}
NAMES = {
    "unicode and spaces": good(scenes.named("Flürstück ø 東京 🛰.tif"), "Flürstück ø 東京 🛰.tif"),
    "newline": good(scenes.named("a\nb.tif"), "a\nb.tif"),
    "newline, missing": bad(scenes.plain, "x y.tif", "x\ny.tif"),
    "escape sequence, missing": bad(scenes.plain, r"error: \x1b(x.tif: ", "\x1b(x.tif"),
    "dash in front, with a folder": good(scenes.named("-x.tif"), "./-x.tif"),
    "dash in front, after --": good(scenes.named("-x.tif"), "--", "-x.tif"),
    "dash in front, alone": bad(scenes.named("-x.tif"), "No such option", "-x.tif", code=2),
    "not UTF-8": bad(scenes.not_utf8, r"\udcff\udcfe.tif", "\udcff\udcfe.tif"),
    "quotes and percent signs": good(scenes.named("a'b\"c%d;$e.tif"), "a'b\"c%d;$e.tif"),
}
TARGETS = {
    "folder that does not exist": bad(scenes.plain, "folder does not exist", output="none/m.tif"),
    "a folder": bad(scenes.with_folder, "is a folder", "scene.tif", "--confidence", "maps.tif"),
    "name of 300 letters": bad(scenes.plain, "long", output="a" * 300 + ".tif"),
    "name of 250 letters": bad(scenes.plain, "long", output="a" * 250 + ".tif"),
    "the scene itself": bad(scenes.plain, "is the input itself", output="scene.tif"),
    "a loop of links": bad(scenes.link_circle, "is a link to l2.tif", output="l1.tif"),
}
MODELS = {
    "model cut in its tensors": bad_model(models.cut(0.6), "truncated or damaged"),
    "model cut in its header": bad_model(models.cut(0.001), "truncated"),
    "empty model": bad_model(models.content(b""), "0 bytes, no safetensors file"),
    "header of 2^60 bytes": bad_model(models.content((1 << 60).to_bytes(8, "little") + b"{}"), "truncated"),
    "header that is no JSON": bad_model(
        models.content(models.join(b"{]}", b"")), "not that of a safetensors file"
    ),
    "header that is a list": bad_model(
        models.content(models.join([1], b"")), "not that of a safetensors file"
    ),
    "header nested 100,000 deep": bad_model(
        models.content(models.join(b"[" * 100_000, b"")), "not that of a safetensors file"
    ),
    "no description": bad_model(
        models.changed(lambda header: header.pop("__metadata__") and None), "without a model description"
    ),
    "description that is no JSON": bad_model(models.with_spec(lambda spec: "{nothing"), "is no JSON"),
    "description nested 10,000 deep": bad_model(
        models.with_spec(lambda spec: '{"a":' * 10_000 + "1" + "}" * 10_000), "bad.safetensors"
    ),
    "scores nested 500 deep": bad_model(
        models.with_spec(lambda spec: '{"spec_version": 1, "scores": ' + '{"a":' * 500 + "1" + "}" * 501),
        "bad.safetensors",
    ),
    "description of wrong types": bad_model(models.spec_fields(bands=5), "wrong value"),
    "means of infinity": bad_model(
        models.with_spec(lambda spec: '{"spec_version": 1, "mean": [1e999]}'), "model description is no JSON"
    ),
    "a number of 5,000 digits": bad_model(
        models.with_spec(lambda spec: '{"spec_version": 1' + "0" * 5000 + "}"), "bad.safetensors"
    ),
    "gsd of 1e-300 m": bad_model(models.spec_fields(gsd_m=1e-300), "bad.safetensors"),
    "gsd of 1e300 m": bad_model(models.spec_fields(gsd_m=1e300), "bad.safetensors"),
    "network of 10^15 channels": bad_model(models.network_fields(channels=10**15), "bad.safetensors"),
    "network of 10^9 layers": bad_model(models.network_fields(layers=10**9), "bad.safetensors"),
    "encoder of the network": bad_model(
        models.network_fields(encoder="hf-hub:evil/model"), "is not one of timm"
    ),
    "unknown architecture": bad_model(
        models.spec_fields(architecture="none"), "architecture 'none' is unknown"
    ),
    "missing tensor": bad_model(models.changed(models.missing_tensor), "1 tensors missing"),
    "extra tensor": bad_model(models.changed(models.extra_tensor), "1 tensors unexpected: extra"),
    "tensor of another shape": bad_model(models.changed(models.wrong_shape), "the network needs"),
    "tensor of an unknown type": bad_model(models.changed(models.wrong_dtype), "bad.safetensors"),
    "tensor of truth values": bad_model(models.changed(models.complex_dtype), "bad.safetensors"),
    "tensors that share bytes": bad_model(models.changed(models.overlapping), "bad.safetensors"),
    "weights that are not finite": bad_model(models.not_finite, "not finite"),
    "a folder as model": bad(scenes.plain, "neither a file", "scene.tif", "--model", "."),
    "a model's name of 5,000 letters": bad(
        scenes.plain, "neither a file", "scene.tif", "--model", "x" * 5000
    ),
    "model for other bands": bad_model(
        models.spec_fields(bands=["swir1", "swir2", "pan", "lidar"], mean=[0] * 4, std=[1] * 4),
        "needs 4 (swir1, swir2, pan, lidar)",
    ),
    "hostile pickle as model, .pth": bad(
        models.hostile("bad.pth"), "a pickle, which can run any code", "scene.tif", "--model", "bad.pth"
    ),
    "hostile pickle as model, .pt": bad(
        models.hostile("bad.pt", legacy=True),
        "a pickle, which can run any code",
        "scene.tif",
        "--model",
        "bad.pt",
    ),
    "hostile pickle as model, bare": bad(
        models.bare_pickle("bad.safetensors"),
        "a pickle, which can run any code",
        "scene.tif",
        "--model",
        "bad.safetensors",
    ),
}
IMPORT = ("bad.ckpt", "--topk-ratio", "1", "--classes", "a,b,c")


def bad_import(make: Callable[..., Any], message: str) -> Case:
    return bad(make, message, *IMPORT, command="models import", output="m.safetensors")


IMPORTS = {
    "hostile checkpoint": bad_import(models.hostile("bad.ckpt"), "which can run any code"),
    "hostile checkpoint, old form": bad_import(
        models.hostile("bad.ckpt", legacy=True), "which can run any code"
    ),
    "hostile checkpoint, nothing else": bad_import(
        models.hostile("bad.ckpt", wrapped=False), "which can run any code"
    ),
    "hostile pickle": bad_import(models.bare_pickle("bad.ckpt"), "bad.ckpt"),
    "cut checkpoint": bad_import(models.zip_bomb, "damaged"),
    "checkpoint of text": bad_import(models.content(b"hello", "bad.ckpt"), "no PyTorch checkpoint"),
    "empty checkpoint": bad_import(models.content(b"", "bad.ckpt"), "no PyTorch checkpoint"),
}


def bad_area(make: Callable[..., Any], message: str, name: str = "aoi.geojson", code: int = 2) -> Case:
    return bad(make, message, "scene.tif", "--aoi", name, code=code)


SQUARE, BOWTIE = vectors.polygon(vectors.SQUARE), vectors.polygon(vectors.BOWTIE)
DEGREES = [[15.0, 45.1533], [15.0002, 45.1533], [15.0002, 45.1525], [15.0, 45.1525], [15.0, 45.1533]]
HUGE = [[-1e308, -1e308], [1e308, -1e308], [1e308, 1e308], [-1e308, 1e308], [-1e308, -1e308]]
AREAS = {
    "empty area file": bad_area(vectors.aoi(""), "cannot be read"),
    "area of text": bad_area(vectors.aoi("hello"), "cannot be read"),
    "area without features": bad_area(vectors.aoi(vectors.collection()), "needs polygons"),
    "area of points": bad_area(
        vectors.aoi(vectors.collection({"type": "Point", "coordinates": [0, 0]})), "needs polygons"
    ),
    "area of no geometry": bad_area(vectors.aoi(vectors.collection(None)), "aoi.geojson"),
    "area elsewhere": bad_area(
        vectors.aoi(vectors.collection(vectors.polygon([[0, 0], [1, 0], [1, 1], [0, 0]]))),
        "outside the scene",
    ),
    "area of too few points": bad_area(
        vectors.aoi(vectors.collection(vectors.polygon([[0, 0], [1, 0]]))), "aoi.geojson"
    ),
    "area that crosses itself": good(
        vectors.aoi(vectors.collection(BOWTIE)), "scene.tif", "--aoi", "aoi.geojson", empty_px=None
    ),
    "area in degrees": good(
        vectors.aoi(vectors.collection(vectors.polygon(DEGREES), crs=None)),
        "scene.tif",
        "--aoi",
        "aoi.geojson",
        empty_px=None,
    ),
    "area of gigantic coordinates": good(
        vectors.aoi(vectors.collection(vectors.polygon(HUGE))),
        "scene.tif",
        "--aoi",
        "aoi.geojson",
        empty_px=None,
    ),
    "area of NaN": bad_area(
        vectors.aoi(vectors.collection(SQUARE).replace("500002.0", "NaN")), "aoi.geojson"
    ),
    "area that is a folder": bad_area(scenes.plain, "cannot be read", "."),
    "area that is the scene": bad_area(scenes.plain, "cannot be read", "scene.tif"),
    "area that is missing": bad_area(scenes.plain, "cannot be read", "none.gpkg"),
    "area for a scene without CRS": bad_area(
        vectors.aoi(vectors.collection(SQUARE), crs=None), "the scene has none"
    ),
    "area for a local CRS": bad_area(
        vectors.aoi(vectors.collection(SQUARE), crs=scenes.LOCAL_CRS), "cannot be reprojected"
    ),
}


LABEL_COMMANDS = {
    "vectorize": (("labels.tif",), "v.gpkg"),
    "refine": (("scene.tif", "labels.tif", "--refiner", "buildings-refiner"), "r.tif"),
    "score": (("labels.tif", "scene.tif", "--classes", "a,b,c"), ""),
}


def bad_labels(make: Callable[..., Any], message: str, command: str = "vectorize") -> Case:
    arguments, output = LABEL_COMMANDS[command]
    return bad(make, message, *arguments, command=command, output=output)


LABELS = {
    "labels of halves": bad_labels(
        vectors.labels(vectors.classes(dtype="float32") + 0.5), "class indices are whole numbers"
    ),
    "labels with NaN": good(
        vectors.labels(vectors.with_one(np.nan)),
        "labels.tif",
        command="vectorize",
        output="v.gpkg",
        empty_px=None,
    ),
    "labels with infinity": bad_labels(
        vectors.labels(vectors.with_one(np.inf)), "class indices are whole numbers"
    ),
    "labels of 10^9": bad_labels(
        vectors.labels(vectors.classes(dtype="int32") + 10**9), "class indices are whole numbers"
    ),
    "labels of complex numbers": bad_labels(vectors.labels(vectors.classes(dtype="complex64")), "labels.tif"),
    "labels of three bands": bad_labels(vectors.labels(scenes.noise()), "labels.tif"),
    "labels with names that are no XML": good(
        vectors.named_by_control_characters, "labels.tif", command="vectorize", output="v.gpkg", empty_px=None
    ),
    "refine labels of floats": bad_labels(
        vectors.labels(vectors.classes(dtype="float32")), "value 2.0 at row 0, column 2 is no class", "refine"
    ),
    "refine labels elsewhere": bad_labels(
        vectors.labels(vectors.classes((20, 30)), transform=scenes.Affine(1, 0, 0, 0, -1, 0)),
        "labels.tif",
        "refine",
    ),
}
GROUPS = {
    "file": FILES,
    "claim": CLAIMS,
    "virtual": VIRTUAL,
    "pixels": PIXELS,
    "grid": GRIDS,
    "sidecar": SIDECARS,
    "name": NAMES,
    "target": TARGETS,
    "model": MODELS,
    "import": IMPORTS,
    "area": AREAS,
    "labels": LABELS,
}
CASES = {f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    classes = ModelSpec.for_network(classes=["roof", "road", "tree"]).classes
    spec = ModelSpec(
        name="tiny",
        architecture="bicor-seg",
        classes=classes,
        network=asdict(config),
        gsd_m=0.5,
        gsd_range_m=(1e-9, 1e9),
    )
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors", BicorSeg(config), spec)


def make_files(case: Case, folder: Path, model: Path) -> None:
    if case.make.__module__ == "hard_models":
        case.make(folder, model)
        if case.command == "predict":
            scenes.plain(folder)
    else:
        case.make(folder)


def arguments_of(case: Case, model: Path) -> list[str]:
    given = list(case.arguments)
    if case.command == "predict":
        given = [*SMALL, *([] if "--model" in given else ["--model", str(model)]), "-o", case.output, *given]
    elif case.output:
        given = ["-o", case.output, *given]
    return [*case.command.split(), *given]


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """An input that claims to be large must not take long."""

    def stop(*_: object) -> None:
        raise AssertionError("still at work after 120 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


PARAMETERS = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] if case.slow else []) for name, case in CASES.items()
]


@pytest.mark.parametrize("case", PARAMETERS)
def test_hard_input(
    case: Case, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_files(case, tmp_path, model_file)
    before = files_of(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # else pytest's keeps strangers' lines from stderr
    capfd.readouterr()
    done = CliRunner().invoke(app, arguments_of(case, model_file))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "".join(capfd.readouterr()) == ""  # nothing from libraries beside the program
    check(case, done.exit_code, done.stdout, done.stderr, before)


STREAMS = [
    FILES["empty file"],
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in CASES.items()),
]


@pytest.mark.parametrize("case", STREAMS)
def test_hard_input_in_a_process_of_its_own(
    case: Case, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_files(case, tmp_path, model_file)
    before = files_of(tmp_path)
    command = [sys.executable, "-m", "rsseg_cli", *arguments_of(case, model_file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    check(case, done.returncode, done.stdout, done.stderr, before)


def test_a_target_that_cannot_be_written(model_file: Path, tmp_path: Path) -> None:
    """Root may write anywhere but in a folder that is immutable."""
    folder = tmp_path / "maps"
    folder.mkdir()
    scenes.plain(tmp_path)
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("needs a file system with immutable folders, and root")
    try:
        arguments = [
            "predict",
            str(tmp_path / "scene.tif"),
            "-o",
            str(folder / "m.tif"),
            "--model",
            str(model_file),
        ]
        done = CliRunner().invoke(app, [*arguments, *SMALL])
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "no permission to write in" in line
    assert not any(folder.iterdir())


def check(case: Case, code: int, stdout: str, stderr: str, before: set[str]) -> None:
    """The exit code, the words, one line of error among whole lines of ours, and the files that are there."""
    folder, lines = Path(), stderr.splitlines()
    assert code == case.code, stderr
    assert case.message in stderr
    errors = [line for line in lines if line.startswith(("rsseg: error: ", "Error: "))]
    usage = [
        line for line in lines if line.startswith(("Usage:", "Try '")) or not line
    ]  # above Click's errors
    notes = [line for line in lines if line.startswith("rsseg: ") and line not in errors]
    assert sorted(lines) == sorted([*errors, *notes, *usage])
    assert len(errors) == (case.code != 0)
    assert not (folder / "RAN").exists()
    if case.code == 0:
        check_output(case, folder, before)
        return
    assert stdout == ""
    assert files_of(folder) == before


def check_output(case: Case, folder: Path, before: set[str]) -> None:
    assert files_of(folder) - before <= {
        case.output,
        f"{case.output}.aux.xml",
        f"{Path(case.output).stem}.qml",
    }
    if case.command != "predict":
        return
    with (
        rasterio.open(case.arguments[-1] if case.arguments[0] == "--" else case.arguments[0]) as scene,
        rasterio.open(case.output) as made,
    ):
        assert made.shape == scene.shape
        assert made.transform.almost_equals(scene.transform, 1e-12)
        if made.transform != scenes.Affine.identity():
            assert made.crs == scene.crs
        assert (made.dtypes, made.nodata) == (("uint8",), 255)
        labels = made.read(1)
    assert set(np.unique(labels)) <= {0, 1, 2, 255}
    if case.empty_px is not None:
        assert (labels == 255).sum() == case.empty_px


def test_gdal_itself_prints_nothing_in_threads_that_read(tmp_path: Path, capfd: Any) -> None:
    """Of the directory of overviews, cut off with the file's end, GDAL complains when it first reads."""
    whole = tmp_path / "whole.tif"
    scenes.write(whole, scenes.noise(3, (600, 600)), tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(whole, "r+") as dataset:
        dataset.build_overviews([2])
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with SceneReader(SceneInfo.of(cut), (1, 2, 3)) as reader, ThreadPoolExecutor(1) as threads:
        error = threads.submit(reader.read, 0, 0, 600, 600).exception()
    assert "cannot be read" in str(error)
    assert capfd.readouterr().err == ""
