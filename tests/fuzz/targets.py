"""What is fuzzed: each target takes bytes and either gives a sound object or raises an error of ours."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from networks import CLASSES, one_hot, read
from rasterio.transform import from_origin

from rsseg_cli import PredictConfig, predict
from rsseg_cli.batch import BatchSettings, LocalEngine, run_batch
from rsseg_cli.errors import RssegError
from rsseg_cli.raster import SceneInfo, SceneReader
from rsseg_cli.weights import ModelSpec, load_model, read_spec

Target = Callable[[bytes, Path], None]
MAX_READ_PX = 64


def raster(data: bytes, folder: Path) -> None:
    """A file is refused, or reported and read in bounded windows whose shapes are those asked for."""
    path = folder / "fuzzed.tif"
    path.write_bytes(data)
    try:
        info = SceneInfo.of(path)
        assert info.count >= 1
        assert all(map(math.isfinite, info.grid.bounds))
        bands = tuple(range(1, min(info.count, 4) + 1))
        height, width = min(info.grid.height, MAX_READ_PX), min(info.grid.width, MAX_READ_PX)
        if max(info.block_shape) > 4096 or any(kind.startswith("complex") for kind in info.dtypes):
            return
        with SceneReader(info, bands) as reader:
            array, valid = reader.read(0, 0, height, width)
            assert array.shape == (len(bands), height, width)
            assert valid.shape == (height, width)
            SceneReader.fill(array, valid)
            reader.read(info.grid.height - height, info.grid.width - width, height, width)
    except RssegError:
        pass


def model(data: bytes, folder: Path) -> None:
    """A model file is refused, or described; its weights too."""
    path = folder / "fuzzed.safetensors"
    path.write_bytes(data)
    try:
        spec = read_spec(path)
        assert ModelSpec.from_json(spec.to_json()) == spec
        load_model(path)
    except RssegError:
        pass


def description(data: bytes, folder: Path) -> None:
    """A ModelSpec's text is refused, or becomes one that can be stored again."""
    try:
        spec = ModelSpec.from_json(data.decode("utf-8", "replace"))
        assert ModelSpec.from_json(spec.to_json()) == spec
    except RssegError:
        pass


def journal(data: bytes, folder: Path) -> None:
    """A run resumes, or starts over, whatever the journal of an earlier one says; no other file changes."""
    other = folder / "other.tif"
    other.write_bytes(b"not of this run")
    work = folder / ".map.tif.rsseg"
    work.mkdir(exist_ok=True)
    (work / "journal.json").write_bytes(data.replace(b"FOLDER", bytes(folder)))
    with suppress(RssegError):
        _run(folder)
        assert (read(folder / "map.tif")[0] == _PIXELS[0]).all()
    assert other.read_bytes() == b"not of this run"


def manifest(data: bytes, folder: Path) -> None:
    """A manifest is refused, or records are added to it."""
    path = folder / "run.jsonl"
    path.write_bytes(data)
    with suppress(RssegError):
        run_batch([], BatchSettings(folder=folder, model="landcover", manifest=path), LocalEngine())


_PIXELS = np.random.default_rng(0).integers(0, CLASSES, (3, 130, 60), dtype=np.uint8)


def _run(folder: Path, **more: Any) -> None:
    """Map a scene whose first band is the map."""
    scene = folder / "scene.tif"
    if not scene.exists():
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 130, "width": 60}
        with rasterio.open(scene, "w", **profile) as dataset:
            dataset.write(_PIXELS)
        os.utime(scene, ns=(0, 0))
    config = PredictConfig(tile_size=64, overlap=16, batch_size=1, checkpoint_s=0, overwrite=True)
    predict(scene, folder / "map.tif", model=one_hot(), config=config, resume=True, **more)


TARGETS: dict[str, Target] = {
    "raster": raster,
    "model": model,
    "description": description,
    "journal": journal,
    "manifest": manifest,
}


# --- what good files look like, to be damaged


def raster_seeds(folder: Path) -> list[bytes]:
    """Small rasters of the kinds that people have."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 24, 24), dtype=np.uint8)
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 0.5, 0.5)}
    kinds = (
        {},
        {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "lzw", "predictor": 2, "nodata": 0},
        {"compress": "jpeg", "photometric": "ycbcr"},
        {"compress": "zstd", "bigtiff": "yes", "interleave": "band"},
        {"driver": "PNG"},
        {"driver": "VRT"},
        {"dtype": "float32"},
        {"nbits": 1},
    )
    seeds = []
    for number, kind in enumerate(kinds):
        path = folder / f"seed{number}.tif"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 24, "width": 24} | place | kind
        if profile["driver"] == "VRT":
            rasterio.shutil.copy(folder / "seed0.tif", path, driver="VRT")
        else:
            with rasterio.open(path, "w", **profile) as dataset:
                dataset.write(pixels.astype(profile["dtype"]) // (128 if "nbits" in kind else 1))
        seeds.append(path.read_bytes())
    return seeds


def model_seeds(folder: Path) -> list[bytes]:
    """A tiny model, and headers of others without tensors."""
    from rsseg_cli.models import BicorSeg, BicorSegConfig
    from rsseg_cli.weights import save_model

    config = BicorSegConfig(classes=2, encoder="tf_efficientnet_lite0", channels=16)
    classes = ModelSpec.for_network(classes=["a", "b"]).classes
    spec = ModelSpec(name="tiny", architecture="bicor-seg", classes=classes, network=asdict(config))
    whole = save_model(folder / "seed.safetensors", BicorSeg(config), spec).read_bytes()
    header = json.dumps({"__metadata__": {"rsseg_model": spec.to_json()}}).encode()
    return [whole, struct.pack("<Q", len(header)) + header]


def description_seeds(folder: Path) -> list[bytes]:
    spec = ModelSpec.for_network(classes=["a", "b"])
    more = {"gsd_m": 0.5, "gsd_range_m": [0.3, 0.8], "scores": {"miou": [0.5, None]}, "refiner": "r"}
    values = json.loads(spec.to_json())
    return [json.dumps(values).encode(), json.dumps(values | more).encode()]


def journal_seeds(folder: Path) -> list[bytes]:
    """Of a run that was stopped, and as if it had been killed while it gave its outputs their names."""

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        _run(folder, progress=stop)
    stopped = (folder / ".map.tif.rsseg" / "journal.json").read_bytes().replace(bytes(folder), b"FOLDER")
    names = [["FOLDER/.map.tif.rsseg/labels.tif", "FOLDER/map.tif"]]
    publication = {"renames": names, "leftovers": ["FOLDER/map.tif.ovr"], "result": {}}
    return [stopped, json.dumps(json.loads(stopped) | {"publication": publication}).encode()]


def manifest_seeds(folder: Path) -> list[bytes]:
    records = [
        {"input": f"{number}.tif", "status": status, "outputs": {"labels": "m.tif"}, "seconds": 1.5}
        for number, status in enumerate(("started", "done", "failed"))
    ]
    return [b"".join(json.dumps(record).encode() + b"\n" for record in records)]


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "raster": raster_seeds,
    "model": model_seeds,
    "description": description_seeds,
    "journal": journal_seeds,
    "manifest": manifest_seeds,
}

ODD_TEXT = (
    b"null", b"-1", b"1e999", b"NaN", b"18446744073709551616", b"9" * 5000, b"[]", b"{}", b'""', b"true",
    b"[" * 3000,
    b'"\\u0000"', b'"\\ud800"', b"\xff\xfe", b"\x00", b"\n", b"../../x", b'"' + b"a" * 5000 + b'"',
)  # fmt: skip
ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few changes of the kinds that break parsers; most fall on the header, where structure is."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        end = len(content) if chance.random() < 0.5 else min(len(content), 1024)
        place = chance.randrange(end) if end else 0
        kind = chance.randrange(7)
        if kind == 0 and content:
            content[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and content:
            content[place] = chance.randrange(256)
        elif kind == 2:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(ODD_NUMBERS) & (256**size - 1)
            content[place : place + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif kind == 3:
            del content[place : place + chance.choice((1, 2, 8, 64, 4096))]
        elif kind == 4:
            content[place:place] = content[place : place + chance.choice((1, 8, 64))]
        elif kind == 5:
            content[place:place] = chance.choice(ODD_TEXT)
        else:
            token = _token(content, place)
            content[token] = chance.choice(ODD_TEXT)
    return bytes(content)


def _token(content: bytearray, place: int) -> slice:
    """A number or a word in quotes behind a place, to be replaced as a whole."""
    starts = [place + at for at, byte in enumerate(content[place : place + 200]) if byte in b'0123456789"']
    if not starts:
        return slice(place, place)
    start = starts[0]
    if content[start] == ord('"'):
        end = content.find(b'"', start + 1)
        return slice(start, end + 1 if end > 0 else start + 1)
    end = start
    while end < len(content) and content[end] in b"0123456789.eE+-":
        end += 1
    return slice(start, end)
