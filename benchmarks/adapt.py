"""Measure `rsseg adapt` and `rsseg suggest` against what a user can expect of them.

    python benchmarks/adapt.py DATA [--steps 1000] [--part spain|orchard|roofs|drawn|suggest ...] [--json]

spain: ten shapes (four of vines as vegetation, two tracks, two fields, two roofs) over a Spanish orthophoto
of `DATA/unlabelled`, then the share of the scene that is mapped as building, in all, in vineyards and
outside its three farmsteads, and the mean IoU on the test tile of `DATA/dubai` (a square of 1024 px of each
of its parts), before and after. The model must describe its training data (`rsseg models calibrate`) for the
correction to be local.
orchard: the same with one of the four shapes not over vines, but over the sparse orchard beside them.
roofs: `buildings` in the real places that it has never seen (`benchmarks/places.py`): ten shapes on the left
half, five roofs that the map misses most of and five squares of ground that it takes for roofs, and the same
with as many of both that it has right, then the IoU of building on the right half, before and after.
drawn: ten squares a class on the left half of artificial scenes, then the mean IoU on the right half:
before, after, and after training on all labels of the left half.
suggest: squares that `rsseg suggest` chooses against as many and twice as many random ones, with the exact
labels of these scenes.

`--steps` is the most of each run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from places import NONE, cached
from rasterio.features import rasterize, shapes
from rasterio.windows import Window
from scipy import ndimage
from shapely.affinity import affine_transform
from shapely.geometry import LineString, Polygon, box, shape

from rsseg_cli import predict
from rsseg_cli.accuracy import suggest
from rsseg_cli.accuracy.config import SuggestConfig
from rsseg_cli.data.synthetic import CLASSES, write_scene
from rsseg_cli.training import adapt
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.weights import load_model

NAMES = [name for name, _ in CLASSES]
SPAIN = "unlabelled/spain_pnoa25_0398_3-1_1.tif"
SHAPES = (  # class and corners (column, row), px of the orthophoto; two corners are a line
    ("vegetation", ((960, 1400), (1240, 1460), (1220, 1520), (940, 1470))),
    ("vegetation", ((20, 880), (260, 950), (240, 1000), (20, 940))),
    ("vegetation", ((620, 1060), (740, 1080), (560, 1400), (440, 1360))),
    ("vegetation", ((240, 300), (500, 360), (480, 400), (220, 350))),
    ("road", ((330, 20), (240, 200))),
    ("road", ((1690, 1300), (1440, 1860))),
    ("land", ((200, 640), (700, 760), (680, 860), (150, 720))),
    ("land", ((600, 80), (900, 60), (960, 260), (700, 200))),
    ("building", ((984, 596), (1014, 604), (1010, 648), (980, 640))),
    ("building", ((1182, 1650), (1240, 1662), (1230, 1702), (1174, 1694))),
)
ORCHARD = ("vegetation", ((1330, 1370), (1560, 1420), (1530, 1510), (1310, 1460)))
FARMSTEADS = ((920, 530, 1090, 710), (310, 1560, 540, 1840), (920, 1540, 1350, 1750))  # px: left, top, ...
VINEYARDS = (  # most of them, by eye; corners (column, row), px
    ((220, 270), (950, 450), (920, 580), (850, 730), (590, 670), (610, 500), (220, 400)),
    ((0, 840), (600, 1010), (250, 1600), (0, 1530)),
    ((650, 1010), (790, 1070), (430, 1670), (340, 1600)),
    ((810, 1070), (1020, 1040), (930, 1330), (780, 1320)),
    ((940, 1210), (1230, 1260), (1190, 1410), (920, 1350)),
    ((900, 1390), (1530, 1530), (1490, 1670), (890, 1520)),
    ((0, 1550), (290, 1630), (160, 1900), (0, 1900)),
    ((590, 1600), (870, 1550), (800, 1900), (520, 1900)),
    ((930, 1670), (1430, 1770), (1390, 1900), (820, 1900)),
    ((0, 0), (300, 0), (240, 190), (0, 210)),
)
REAL_PLACES = "kampala 0.4", "zurich", "paris", "shanghai"
SCENES, SIDE, GSD_M = (("greenhouses", 5), ("terraces", 5), ("informal", 6)), 1024, 1.0  # style and seed
MORE_SCENES = ("greenhouses", 7), ("terraces", 7), ("informal", 7)  # for suggest: few labels, much chance
SQUARE_PX = 12
Labels = NDArray[np.uint8]


def spain(
    data: Path, folder: Path, model: str, steps: int, drawn_shapes: Sequence[Any] = SHAPES
) -> dict[str, Any]:
    scene = data / SPAIN
    with rasterio.open(scene) as source:
        transform, crs, size = source.transform, source.crs, source.shape
    corners = [[transform * point for point in points] for _, points in drawn_shapes]
    drawn = [LineString(points) if len(points) == 2 else Polygon(points) for points in corners]
    labels = folder / "spain.gpkg"
    geopandas.GeoDataFrame({"class": [name for name, _ in drawn_shapes]}, geometry=drawn, crs=crs).to_file(
        labels
    )
    adapted = folder / "spain.safetensors"
    result = adapt([(scene, labels)], adapted, AdaptConfig(model=model, steps=steps))
    rows: dict[str, Any] = {"steps": result.steps, "seconds": result.seconds}
    vineyards = rasterize([Polygon(corners) for corners in VINEYARDS], size) > 0
    for when, used in (("before", model), ("after", str(adapted))):
        mapped = _mapped(scene, folder, used)
        buildings = mapped == 0
        rows[f"building share {when}"] = float(buildings.mean())
        rows[f"building share {when}, in vineyards"] = float((buildings & vineyards).mean())
        for left, top, right, bottom in FARMSTEADS:
            buildings[top:bottom, left:right] = False
        rows[f"building share {when}, without farmsteads"] = float(buildings.mean())
        rows[f"dubai test mIoU {when}"] = _dubai(data, folder, used)
    return rows


def _dubai(data: Path, folder: Path, model: str) -> float:
    confusion, used = np.zeros((5, 5), np.int64), load_model(model)
    for path in sorted((data / "dubai/images").glob("tile8_*.jpg")):
        with Image.open(path) as image, Image.open(data / f"dubai/masks/{path.stem}.png") as mask:
            left, top = ((side - 1024) // 2 for side in image.size)
            part = np.asarray(image.crop((left, top, left + 1024, top + 1024)))
            labels = np.asarray(mask.crop((left, top, left + 1024, top + 1024)))
        square = folder / "dubai.png"
        Image.fromarray(part).save(square)
        confusion += _confusion(labels, _mapped(square, folder, used))
    return _miou(confusion)


def _mapped(scene: Path, folder: Path, model: Any) -> Labels:
    target = folder / "map.tif"
    predict(scene, target, model=model, overwrite=True)
    with rasterio.open(target) as made:
        return made.read(1)


def _confusion(labels: Labels, mapped: Labels) -> NDArray[np.int64]:
    known = (labels < 5) & (mapped < 5)
    return np.bincount(labels[known] * 5 + mapped[known], minlength=25).reshape(5, 5)


def _miou(confusion: NDArray[np.int64]) -> float:
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float(np.mean(hits[union > 0] / union[union > 0]))


def roofs(data: Path, folder: Path, model: str, steps: int) -> dict[str, Any]:
    model = "buildings" if model.startswith("landcover") else model
    found: dict[str, Any] = {}
    for part, path in cached(data, "buildings", folder):
        if part.place not in REAL_PLACES:
            continue
        middle = part.labels.shape[1] // 2
        truth, mapped = part.labels, _mapped(path, folder, model)
        left, right = (slice(None), slice(middle)), (slice(None), slice(middle, None))
        with rasterio.open(path) as source:
            transform, crs = source.transform, source.crs
        wrong = _mistakes(truth[left], mapped[left], part.gsd_m)
        rows = {"before": _iou(truth[right], mapped[right])}
        for key, shapes_ in (
            ("mistakes", wrong),
            ("both", wrong + _hits(truth[left], mapped[left], part.gsd_m)),
        ):
            labels, adapted = folder / "roofs.gpkg", folder / "roofs.safetensors"
            labels.unlink(missing_ok=True)
            numbers = transform.a, transform.b, transform.d, transform.e, transform.c, transform.f
            outlines = [affine_transform(outline, numbers) for outline, _ in shapes_]
            columns = {"class": [name for _, name in shapes_]}
            geopandas.GeoDataFrame(columns, geometry=outlines, crs=crs).to_file(labels)
            adapt([(path, labels)], adapted, AdaptConfig(model=model, steps=steps, overwrite=True))
            rows[key] = _iou(truth[right], _mapped(path, folder, str(adapted))[right])
        found[part.place] = rows
    mean = {key: float(np.mean([rows[key] for rows in found.values()])) for key in rows}
    return found | {"mean": mean}


def _roofs(truth: Labels, mapped: Labels, gsd_m: float) -> list[tuple[float, Polygon]]:
    """Outlines of roofs of 20 m2 and more, with the share that a map misses of each; the worst first."""
    found = []
    for geometry, _ in shapes((truth == 1).astype(np.uint8), mask=truth == 1):
        pixels = rasterize([geometry], truth.shape) > 0
        if pixels.sum() * gsd_m**2 >= 20:
            found.append((float((pixels & (mapped != 1)).sum() / pixels.sum()), shape(geometry)))
    return sorted(found, key=lambda item: -item[0])


def _mistakes(truth: Labels, mapped: Labels, gsd_m: float) -> list[tuple[Polygon, str]]:
    """Five roofs that a map misses most of, and five squares of ground, of 3 m or less, that it takes for
    roofs, far from each other."""
    found = [(outline, "building") for _, outline in _roofs(truth, mapped, gsd_m)[:5]]
    false = (truth == 0) & (mapped == 1)
    for _ in range(5):
        depth = ndimage.distance_transform_cdt(np.pad(false, 1))[1:-1, 1:-1]
        row, col = np.unravel_index(int(depth.argmax()), depth.shape)
        reach = min(float(depth[row, col]) - 0.5, 1.5 / gsd_m)
        if reach < 1:
            break
        found.append((_square(row, col, reach), "background"))
        apart = round(10 / gsd_m)
        false[max(row - apart, 0) : row + apart, max(col - apart, 0) : col + apart] = False
    return found


def _hits(truth: Labels, mapped: Labels, gsd_m: float) -> list[tuple[Polygon, str]]:
    """Five roofs that a map has best, and five squares of ground that it has right, at random."""
    best = [outline for missed, outline in _roofs(truth, mapped, gsd_m)[::-1] if missed < 0.2]
    right = ndimage.binary_erosion((truth == 0) & (mapped == 0), iterations=max(2, round(2 / gsd_m)))
    rows, cols = np.nonzero(right)
    chosen = np.random.default_rng(0).choice(len(rows), 5)
    squares = [_square(rows[k], cols[k], 1.5 / gsd_m) for k in chosen]
    return [(item, "building") for item in best[:5]] + [(item, "background") for item in squares]


def _square(row: int, col: int, reach: float) -> Polygon:
    return box(col + 0.5 - reach, row + 0.5 - reach, col + 0.5 + reach, row + 0.5 + reach)


def _iou(truth: Labels, mapped: Labels) -> float:
    known = truth != NONE
    roof, made = truth[known] == 1, mapped[known] == 1
    return float((roof & made).sum() / max((roof | made).sum(), 1))


class Drawn:
    """An artificial scene whose left half may be labelled and whose right half is scored."""

    def __init__(self, folder: Path, model: str, steps: int, style: str, seed: int) -> None:
        self.folder, self.model, self.steps = folder, model, steps
        self.path, truth = folder / "scene.tif", folder / "truth.tif"
        write_scene(
            self.path, size=SIDE, seed=seed, gsd_m=GSD_M, style=style, labels_path=truth, overwrite=True
        )
        with rasterio.open(truth) as source:
            self.truth, self.transform, self.crs = source.read(1), source.transform, source.crs

    def score(self, model: str) -> float:
        mapped = _mapped(self.path, self.folder, model)[:, SIDE // 2 :]
        return _miou(_confusion(self.truth[:, SIDE // 2 :], mapped))

    def squares(self, squares: Sequence[tuple[int, int, int]]) -> list[tuple[str, Polygon]]:
        """A label for each square (row, column, side) that one class fills by three quarters."""
        found = []
        for row, col, side in squares:
            inside = self.truth[row : row + side, col : col + side]
            counts = np.bincount(inside.ravel(), minlength=5)
            if counts.max() >= 0.75 * inside.size:
                ends = (self.transform * (col + a, row + a) for a in (0, side))
                (left, top), (right, bottom) = ends
                found.append((NAMES[int(counts.argmax())], box(left, bottom, right, top)))
        return found

    def everything(self) -> list[tuple[str, Polygon]]:
        left = self.truth.copy()
        left[:, SIDE // 2 :] = 255
        made = shapes(left, mask=left < 5, transform=self.transform)
        return [(NAMES[int(value)], shape(geometry)) for geometry, value in made if shape(geometry).area > 20]

    def adapted(self, labels: list[tuple[str, Polygon]], seed: int = 0) -> float:
        """Mean IoU after an adaptation to some labels."""
        path, output = self.folder / "labels.gpkg", self.folder / "drawn.safetensors"
        columns, outlines = {"class": [name for name, _ in labels]}, [polygon for _, polygon in labels]
        path.unlink(missing_ok=True)
        geopandas.GeoDataFrame(columns, geometry=outlines, crs=self.crs).to_file(path)
        config = AdaptConfig(model=self.model, steps=self.steps, seed=seed, overwrite=True)
        adapt([(self.path, path)], output, config)
        return self.score(str(output))

    def picture(self, path: Path, squares: Sequence[tuple[int, int, int]]) -> None:
        """Draw the map, squares to label, their labels, and the last adapted map, in rows of two."""
        with rasterio.open(self.path) as source:
            scene = source.read([1, 2, 3]).transpose(1, 2, 0)
        colours = np.array([colour for _, colour in CLASSES], np.uint8)
        adapted = str(self.folder / "drawn.safetensors")
        before, after = (colours[_mapped(self.path, self.folder, model)] for model in (self.model, adapted))
        panels = [Image.fromarray(part) for part in (before, scene, scene, after)]
        for row, col, side in squares:
            ends = col - 6, row - 6, col + side + 5, row + side + 5
            ImageDraw.Draw(panels[1]).rectangle(ends, outline="magenta", width=5)
            for name, _ in self.squares([(row, col, side)]):
                fill = tuple(colours[NAMES.index(name)].tolist())
                ImageDraw.Draw(panels[2]).rectangle(ends, fill=fill, outline="black", width=3)
        side, gap = SIDE // 2, 8
        sheet = Image.new("RGB", (2 * side + gap, 2 * side + gap), "white")
        for index, panel in enumerate(panels):
            corner = index % 2 * (side + gap), index // 2 * (side + gap)
            sheet.paste(panel.resize((side, side), Image.Resampling.LANCZOS), corner)
        sheet.save(path, quality=80)


def drawn(data: Path, folder: Path, model: str, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for style, number in SCENES:
        scene, rng = Drawn(folder, model, steps, style, number), np.random.default_rng(1)
        corners = rng.integers(0, (SIDE - SQUARE_PX, SIDE // 2 - SQUARE_PX), (20_000, 2))
        by_class: dict[str, list[tuple[str, Polygon]]] = {name: [] for name in NAMES}
        for name, square in scene.squares([(int(row), int(col), SQUARE_PX) for row, col in corners]):
            clear = all(not square.intersects(other) for members in by_class.values() for _, other in members)
            if len(by_class[name]) < 10 and clear:
                by_class[name].append((name, square))
        few = [label for members in by_class.values() for label in members]
        rows = {"labels": len(few), "before": scene.score(model), "ten a class": scene.adapted(few)}
        rows["all labels"] = scene.adapted(scene.everything())
        rows["recovered"] = (rows["ten a class"] - rows["before"]) / (rows["all labels"] - rows["before"])
        found[style] = rows
    return found | {"recovered": float(np.mean([rows["recovered"] for rows in found.values()]))}


def suggested(
    data: Path, folder: Path, model: str, steps: int, picture: Path | None = None, number: int = 20
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for style, seed in (*SCENES, *MORE_SCENES):
        scene = Drawn(folder, model, steps, style, seed)
        chosen = _suggestions(scene, model, number)
        rows: dict[str, Any] = {"before": scene.score(model)}
        rows[f"{number} suggested"] = scene.adapted(scene.squares(chosen))
        if picture is not None and (style, seed) == SCENES[0]:
            scene.picture(picture, chosen)
        for count in (number, 2 * number):
            rows[f"{count} random"] = [scene.adapted(scene.squares(_random(draw, count))) for draw in (1, 2)]
        found[f"{style} {seed}"] = rows
    mean = {key: float(np.mean([rows[key] for rows in found.values()])) for key in rows}
    return found | {"mean": mean}


def _suggestions(scene: Drawn, model: str, number: int) -> list[tuple[int, int, int]]:
    """Row, column and side of the squares that `suggest` chooses on the left half."""
    left, mapped, sure = (scene.folder / f"left_{name}.tif" for name in ("scene", "map", "sure"))
    with rasterio.open(scene.path) as source:
        window = Window(0, 0, SIDE // 2, SIDE)
        with rasterio.open(left, "w", **(source.profile | {"width": SIDE // 2})) as target:
            target.write(source.read(window=window))
    predict(left, mapped, model=model, confidence=sure, overwrite=True)
    look = scene.folder / "look.gpkg"
    look.unlink(missing_ok=True)
    config = SuggestConfig(number=number, size_m=SQUARE_PX * GSD_M)
    return [(item.row, item.col, item.size) for item in suggest(left, mapped, sure, look, config).squares]


def _random(seed: int, number: int) -> list[tuple[int, int, int]]:
    """Row, column and side of squares on the left half."""
    across = SIDE // 2 // SQUARE_PX
    places = np.random.default_rng(seed).permutation((SIDE // SQUARE_PX) * across)
    return [(int(k) // across * SQUARE_PX, int(k) % across * SQUARE_PX, SQUARE_PX) for k in places[:number]]


PARTS = {
    "spain": spain,
    "roofs": roofs,
    "orchard": partial(spain, drawn_shapes=(SHAPES[0], ORCHARD, *SHAPES[2:])),
    "drawn": drawn,
    "suggest": suggested,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="landcover@1")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--picture", type=Path, help="of the first scene of suggest")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {}
    parts = PARTS | {"suggest": partial(suggested, picture=arguments.picture)}
    for name in arguments.part or PARTS:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found[name] = parts[name](arguments.data, Path(folder), arguments.model, arguments.steps)
        found[name]["cpu seconds"] = round(time.process_time() - began, 1)
        if not arguments.json:
            print(name, json.dumps(found[name]), flush=True)
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
