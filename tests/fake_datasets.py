"""Generated data sets in the layouts, names and codings of real ones: tiny, and easy to learn.

Each class has a colour of its own with noise upon it, in rectangles, so that a small network learns it in a
few steps. All functions return what they drew: {name of the mask file: class numbers uint8 (height, width)},
with 255 where the data set says "no data". The class numbers are those of the program, not of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

Truth = dict[str, np.ndarray]
IGNORE = 255
COLOURS = np.array(
    [
        (60, 60, 60),
        (220, 60, 50),
        (150, 150, 160),
        (40, 90, 200),
        (210, 190, 120),
        (30, 110, 40),
        (170, 210, 90),
    ],
    np.uint8,
)
ISPRS = np.array(
    [(255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0)], np.uint8
)
VAIHINGEN = {
    "train": ["1", "11", "13", "15", "17", "21", "23", "26", "28", "3", "30", "32", "34", "37", "5", "7"],
    "test": [
        "6",
        "24",
        "35",
        "16",
        "14",
        "22",
        "10",
        "4",
        "2",
        "20",
        "8",
        "31",
        "33",
        "27",
        "38",
        "12",
        "29",
    ],
}
POTSDAM = {
    "train": ["2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10"],
    "test": ["5_15", "6_15", "6_13", "3_13", "4_14", "6_14", "5_14", "2_13"],
}


def draw(size: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of all classes on a ground of the first.

    Returns:
        image uint8 (4, size, size), red green blue near-infrared; labels uint8 (size, size).
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.uint8)
    for number in range(4 * classes):
        row, col = rng.integers(0, size, 2)
        height, width = rng.integers(max(4, size // 6), max(6, size // 2), 2)
        labels[row : row + height, col : col + width] = number % classes
    noise = rng.normal(0, 8, (4, size, size))
    nir = np.where(labels >= 4, 200, 60)[None]
    image = np.concatenate((COLOURS[labels].transpose(2, 0, 1), nir)) + noise
    return image.clip(0, 255).astype(np.uint8), labels


def make_loveda(
    root: Path,
    *,
    size: int = 64,
    count: int = 4,
    val_count: int = 2,
    domains: Sequence[str] = ("Urban", "Rural"),
) -> Truth:
    """LoveDA: Train and Val with `count` and `val_count` images a domain, Test without masks.

    Masks hold 0 for no data (a corner of each), 1 to 7 for the classes.
    """
    truth, number = {}, 0
    for split, images in (("Train", count), ("Val", val_count), ("Test", 1)):
        for domain in domains:
            folder = Path(root) / split / domain
            for kind in ("images_png", "masks_png") if split != "Test" else ("images_png",):
                (folder / kind).mkdir(parents=True, exist_ok=True)
            for _ in range(images):
                image, labels = draw(size, 7, number)
                labels[: size // 8, : size // 8] = IGNORE
                name = f"{number}.png"
                Image.fromarray(image[:3].transpose(1, 2, 0)).save(folder / "images_png" / name)
                if split != "Test":
                    stored = np.where(labels == IGNORE, 0, labels + 1).astype(np.uint8)
                    Image.fromarray(stored).save(folder / "masks_png" / name)
                    truth[name] = labels
                number += 1
    return truth


def make_vaihingen(root: Path, *, size: int = 64, count: int = 4, test_count: int = 2) -> Truth:
    """Vaihingen: near-infrared, red, green in `top`, colour masks beside that folder; TIFF without CRS."""
    truth = {}
    (Path(root) / "top").mkdir(parents=True, exist_ok=True)
    for split, images in (("train", count), ("test", test_count)):
        for number, area in enumerate(VAIHINGEN[split][:images]):
            image, labels = draw(size, 6, number + 100 * (split == "test"))
            name = f"top_mosaic_09cm_area{area}.tif"
            _write(Path(root) / "top" / name, image[[3, 0, 1]])
            _write(Path(root) / name, ISPRS[labels].transpose(2, 0, 1))
            truth[name] = labels
    return truth


def make_potsdam(root: Path, *, size: int = 64, count: int = 4, test_count: int = 2) -> Truth:
    """Potsdam: red, green, blue, near-infrared in `4_Ortho_RGBIR`, colour masks beside it; with a CRS."""
    truth = {}
    folder = Path(root) / "4_Ortho_RGBIR"
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in (("train", count), ("test", test_count)):
        for number, tile in enumerate(POTSDAM[split][:images]):
            image, labels = draw(size, 6, number + 200 + 100 * (split == "test"))
            place = from_origin(368000 + 10 * number, 5808000, 0.05, 0.05)
            georeferenced = {"crs": "EPSG:32633", "transform": place}
            _write(folder / f"top_potsdam_{tile}_RGBIR.tif", image, photometric="rgb", **georeferenced)
            name = f"top_potsdam_{tile}_label.tif"
            _write(Path(root) / name, ISPRS[labels].transpose(2, 0, 1), **georeferenced)
            truth[name] = labels
    return truth


def make_inria(root: Path, *, size: int = 64, count: int = 8, cities: Sequence[str] = ("austin",)) -> Truth:
    """Inria: buildings in 0 and 255; images 1 to 5 of a city are its validation part; test without masks."""
    truth = {}
    base = Path(root) / "AerialImageDataset"
    for folder in ("train/images", "train/gt", "test/images"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for city in cities:
        for number in range(1, count + 1):
            image, labels = draw(size, 2, number)
            place = {"crs": "EPSG:26914", "transform": from_origin(616500 + 100 * number, 3345000, 0.3, 0.3)}
            name = f"{city}{number}.tif"
            _write(base / "train" / "images" / name, image[:3], photometric="rgb", **place)
            _write(base / "train" / "gt" / name, labels[None] * np.uint8(255), **place)
            truth[name] = labels
    image, _ = draw(size, 2, 0)
    _write(base / "test" / "images" / "bellingham1.tif", image[:3], photometric="rgb")
    return truth


def make_landcoverai(root: Path, values: Sequence[int], *, size: int = 64) -> None:
    """LandCover.ai, which TorchGeo reads, one image a part; its masks hold `values` for the classes."""
    (root / "output").mkdir(parents=True)
    for seed, part in enumerate(("train", "val", "test")):
        image, labels = draw(size, len(values), seed)
        name = f"M-1_{seed}"
        Image.fromarray(image[:3].transpose(1, 2, 0)).save(root / "output" / f"{name}.jpg")
        Image.fromarray(np.array(values, np.uint8)[labels]).save(root / "output" / f"{name}_m.png")
        (root / f"{part}.txt").write_text(f"{name}\n")


def _write(path: Path, array: np.ndarray, **profile: object) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", height=array.shape[1], width=array.shape[2], count=len(array),
            dtype="uint8", **profile,
        ) as dataset:  # fmt: skip
            dataset.write(array)
