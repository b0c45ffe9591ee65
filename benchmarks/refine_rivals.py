"""What a refiner does to maps of scenes with labels, next to cheap rivals in the same band around boundaries.

    python benchmarks/refine_rivals.py --model buildings --val zanzibar.tif zanzibar_mask.tif
    --test kampala.tif kampala_mask.tif
    python benchmarks/refine_rivals.py --coarse val.tif test.tif --probabilities val_p.tif test_p.tif ...

Rivals: majority filters; guided filters (He et al., ECCV 2010) of the class probabilities by the scene's
brightness; the model itself run at the refiner's finer resolution. Their settings are the best on --val by
Boundary IoU at 3 px. `coarse` already is the network's probabilities, resized bilinearly to the scene's grid.
Scenes are held in memory. Table on stdout, JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy import ndimage

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.data import LabelFormat
from rsseg_cli.evaluation.scoring import ScoreConfig, Scorer
from rsseg_cli.inference.windows import Band
from rsseg_cli.pipeline import predict, refine
from rsseg_cli.raster import SceneInfo
from rsseg_cli.weights import read_spec

Labels = NDArray[np.uint8]
NODATA = 255


class Scene:
    """A scene with labels, its coarse map and probabilities, in a folder of its own."""

    def __init__(self, image: str, truth: str, folder: Path, args: argparse.Namespace, index: int) -> None:
        self.image, self.truth, self.folder = image, truth, folder
        folder.mkdir(parents=True)
        if args.coarse:
            self.coarse_path, probabilities = Path(args.coarse[index]), Path(args.probabilities[index])
        else:
            self.coarse_path, probabilities = folder / "coarse.tif", folder / "probabilities.tif"
            config = PredictConfig(nodata=args.nodata)
            predict(image, self.coarse_path, model=args.model, probabilities=probabilities, config=config)
        with rasterio.open(self.coarse_path) as file:
            self.coarse: Labels = file.read(1)
            self.profile = file.profile
        with rasterio.open(probabilities) as file:
            self.probabilities = np.where((raw := file.read()) == 255, 0, raw).astype(np.float32) / 254
        with rasterio.open(image) as file:
            self.guide = file.read([1, 2, 3]).mean(0, dtype=np.float32) / 255
        self.band = self._band(args.band_m)

    def _band(self, band_m: float) -> NDArray[np.bool_]:
        band = Band(band_m, SceneInfo.of(self.coarse_path).grid.gsd_m or (1.0, 1.0))
        return band.mask(np.pad(self.coarse, band.margin, constant_values=NODATA))

    def write(self, name: str, labels: Labels) -> Path:
        path = self.folder / f"{name}.tif"
        profile = {
            "driver": "GTiff",
            "compress": "deflate",
            "tiled": True,
            "blockxsize": 512,
            "blockysize": 512,
        }
        kept = {key: self.profile[key] for key in ("width", "height", "count", "dtype", "crs", "transform")}
        with rasterio.open(path, "w", **kept, **profile, nodata=NODATA) as file:
            file.write(np.where(self.band, labels, self.coarse), 1)
        return path


def majority(scene: Scene, size: int) -> Labels:
    """The commonest class in a square of `size` px."""
    best, share = np.zeros_like(scene.coarse), np.full(scene.coarse.shape, -1.0, np.float32)
    for index in range(len(scene.probabilities)):
        found = ndimage.uniform_filter((scene.coarse == index).astype(np.float32), size)
        best, share = np.where(found > share, np.uint8(index), best), np.maximum(found, share)
    return best


def guided(scene: Scene, radius: int, eps: float) -> Labels:
    """Class of the largest probability after a guided filter by brightness."""
    size = 2 * radius + 1

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return ndimage.uniform_filter(values, size)

    guide = scene.guide
    guide_mean = mean(guide)
    variance = mean(guide * guide) - guide_mean**2
    scores = []
    for values in scene.probabilities:
        value_mean = mean(values)
        slope = (mean(guide * values) - guide_mean * value_mean) / (variance + eps)
        scores.append(mean(slope) * guide + mean(value_mean - slope * guide_mean))
    return np.argmax(scores, 0).astype(np.uint8)


def rivals() -> Iterator[tuple[str, str, Callable[[Scene], Labels]]]:
    """Kind, setting, and what it does."""
    for size in (5, 9, 15, 25):
        yield "majority filter", f"{size} px", lambda scene, size=size: majority(scene, size)
    for radius in (4, 8, 16):
        for eps in (1e-4, 1e-3, 1e-2):
            setting = f"radius {radius} px, eps {eps:g}"
            yield "guided filter", setting, lambda scene, r=radius, e=eps: guided(scene, r, e)


def score(scene: Scene, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    classes = read_spec(args.model).classes
    scorer = Scorer(ScoreConfig(classes=classes))
    format = LabelFormat(class_names=tuple(item.name for item in classes))
    scorer.add(path.stem, str(path), scene.truth, truth_format=format, image=None)
    return scorer.result().scores


def refined(scene: Scene, args: argparse.Namespace) -> Path:
    path = scene.folder / "refined.tif"
    config = RefineConfig(refiner=args.refiner, steps=args.steps, band_m=args.band_m)
    refine(scene.image, scene.coarse_path, path, config=config)
    return path


def finer(scene: Scene, args: argparse.Namespace) -> Path:
    path = scene.folder / "finer_whole.tif"
    gsd = read_spec(args.refiner).gsd_m
    predict(scene.image, path, model=args.model, config=PredictConfig(gsd_m=gsd, nodata=args.nodata))
    with rasterio.open(path) as file:
        return scene.write("finer", file.read(1))


def row(name: str, scores: list[dict[str, Any]]) -> str:
    cells = []
    for item in scores:
        bound = item["boundary"]
        cells.append(f"{item['miou']:.4f}")
        cells += [f"{value:.4f}" for value in bound["boundary_iou"]["mean"]]
        cells += [f"{value:.4f}" for value in bound["trimap_accuracy"]["mean"]]
        cells.append(f"{bound['wfm']:.4f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="whose maps are refined, or whose classes they have")
    parser.add_argument("--refiner", help="default: the model's")
    parser.add_argument("--val", nargs=2, metavar=("IMAGE", "LABELS"), required=True)
    parser.add_argument("--test", nargs=2, metavar=("IMAGE", "LABELS"), required=True)
    parser.add_argument("--coarse", nargs=2, metavar=("VAL", "TEST"), help="maps of another network")
    parser.add_argument("--probabilities", nargs=2, metavar=("VAL", "TEST"))
    parser.add_argument("--band-m", type=float, help="default: the refiner's")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--nodata", type=float)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    spec = read_spec(args.model)
    args.refiner = args.refiner or spec.refiner
    args.band_m = args.band_m or float(read_spec(args.refiner).refinement["band_m"])
    with tempfile.TemporaryDirectory() as name:
        pairs = ((args.val, "val"), (args.test, "test"))
        scenes = [Scene(*pair, Path(name) / key, args, index) for index, (pair, key) in enumerate(pairs)]
        results = {"coarse": [score(scene, scene.coarse_path, args) for scene in scenes]}
        best: dict[str, tuple[float, str, Callable[[Scene], Labels]]] = {}
        for kind, setting, apply in rivals():
            scores = score(scenes[0], scenes[0].write("rival", apply(scenes[0])), args)
            at_3 = scores["boundary"]["boundary_iou"]["mean"][1]
            if kind not in best or at_3 > best[kind][0]:
                best[kind] = (at_3, setting, apply)
        for kind, (_, setting, apply) in best.items():
            title = f"{kind}, {setting}"
            results[title] = [score(scene, scene.write("rival", apply(scene)), args) for scene in scenes]
        if not args.coarse:
            results["model at the refiner's resolution"] = [
                score(scene, finer(scene, args), args) for scene in scenes
            ]
        start = time.monotonic()
        results[f"refined, {args.refiner}"] = [score(scene, refined(scene, args), args) for scene in scenes]
        seconds = time.monotonic() - start
    widths = results["coarse"][0]["boundary"]["widths_px"]
    heads = [f"{part} {head}" for part in ("val", "test") for head in
             ["mIoU", *(f"BIoU {w}" for w in widths), *(f"trimap {w}" for w in widths), "WFm"]]  # fmt: skip
    print("| map | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for title, scores in results.items():
        print(row(title, scores))
    print(f"band {args.band_m} m; refining and scoring both took {seconds:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
