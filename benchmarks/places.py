"""Score models place by place: how they do where they were not trained.

    python benchmarks/places.py DATA --model buildings --model mine.safetensors
    python benchmarks/places.py DATA --model landcover --json
    python benchmarks/places.py DATA --model landcover --tta scales --refine landcover-refiner

DATA holds `oam_buildings`, `banepa`, `dubai`, `naip_trees`, `far_test` and `unlabelled`. Scenes are cut to
parts of at most a few megapixels, brought to the resolutions in the table and mapped by `rsseg_cli.predict`;
`--cache` keeps the parts. `buildings` is scored by the IoU of building, `landcover` by the mean IoU over what
a place's labels can tell apart (`KINDS`). A place that a model was trained on has a star and is left out of
the mean over unseen places; models say which in `training["places"]`. Two are marked by eye: `spain` scores
the share of pixels mapped as building (or water) where there is none, `roofs` that of large flat roofs in
Santa Monica and Bishop mapped as anything else (`marks.json`). 95 % intervals of means are by blocks
of 128 px, drawn again within each place; that of a difference is paired. They say what other blocks of these
places would give, not what other places would. With `--refine` Boundary IoU at 3 px, mean of the
classes, follows each score; of weak labels there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import from_origin

from rsseg_cli import PredictConfig, RefineConfig, predict
from rsseg_cli.data.synthetic import draw_scene
from rsseg_cli.evaluation.boundary import BoundaryCounts
from rsseg_cli.evaluation.intervals import interval_of, resamples_of
from rsseg_cli.evaluation.metrics import mean_of
from rsseg_cli.weights import TrainedModel, load_model, registry

NONE = 255
MARKS = Path(__file__).with_name("marks.json")
BLOCK_PX = 128
BOUNDARY_PX = 3
RESAMPLES = 1000
KINDS = {  # what labels of a kind call a class, and which classes of landcover it may be
    "buildings": (("rest", ("land", "road", "vegetation", "water")), ("building", ("building",))),
    "dubai": tuple((name, (name,)) for name in ("building", "land", "road", "vegetation", "water")),
    "weak": (("vegetation", ("vegetation",)), ("rest", ("building", "land", "road", "water"))),
    "zurich": (
        ("building", ("building",)),
        ("vegetation", ("vegetation",)),
        ("ground", ("land", "road")),
        ("water", ("water",)),
    ),
    "none": (("rest", ("land", "road", "vegetation")), ("wrong", ("building", "water"))),
    "roofs": (("building", ("building",)), ("wrong", ("land", "road", "vegetation", "water"))),
}
BY_EYE = ("spain", "roofs")
SEEN = {"buildings": ("zanzibar", "nepal", "banepa", "drawn"), "landcover": ("dubai", "drawn")}
SPAIN = "spain_pnoa25_0398_3-1_1"  # held out of training; parts with buildings or pools, of width and height:
SPAIN_UNKNOWN = (
    (0.52, 0.24, 0.70, 0.40),
    (0.17, 0.82, 0.34, 0.97),
    (0.53, 0.81, 0.83, 0.93),
    (0.93, 0.92, 1, 1),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a scene with labels of a kind, at a resolution."""

    place: str
    kind: str
    gsd_m: float
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Confusion matrices of a place, one a block: labels by classes of the map, the last none of them."""

    kind: str
    blocks: NDArray[np.int64]
    boundary: BoundaryCounts

    def scores(self) -> dict[str, float]:
        return _scores(self.kind, self.blocks.sum(0))

    def boundary_iou(self) -> float:
        return float(mean_of(self.boundary.boundary_iou()[:, 0]))

    def resampled(self) -> NDArray[np.float64]:
        """Scores of RESAMPLES draws of the blocks, the same draws for every model."""
        drawn = [draw for part in resamples_of(len(self.blocks), RESAMPLES, 0, RESAMPLES) for draw in part]
        return np.array([_scores(self.kind, np.tensordot(draw, self.blocks, 1))["score"] for draw in drawn])


def parts(data: Path, task: str) -> Iterator[Part]:
    """What a task ("buildings" or "landcover") is measured on."""
    sizes = (0.2, 0.4) if task == "buildings" else (0.15, 0.4, 1.0)
    *_, fine, coarse = sizes
    oam = {"zanzibar": "zanzibar_z21_1", "kampala": "kampala_z21_1", "nepal": "nepal_z21_0"}
    for place, name in oam.items():
        for gsd_m in sizes:
            image, labels = _read(
                data / f"oam_buildings/images/{name}.tif", data / f"oam_buildings/masks/{name}.tif", gsd_m
            )
            yield Part(place=f"{place} {gsd_m}", kind="buildings", gsd_m=gsd_m, image=image, labels=labels)
    image, labels = _read(data / "banepa/scene.tif", data / "banepa/building_mask.tif", coarse)
    rows, cols = np.nonzero(labels != NONE)
    block = slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1)
    yield Part(place="banepa", kind="buildings", gsd_m=coarse, image=image[:, *block], labels=labels[block])
    for tile in ("tile3_r1_c1", "tile3_r0_c1", "tile8_r1_c1", "tile8_r2_c2"):
        image, labels = _read(data / f"dubai/images/{tile}.jpg", data / f"dubai/masks/{tile}.png", None)
        side = 1024 if task == "landcover" else 320  # buildings are looked for at five times the resolution
        image, labels = image[:, -side:, -side:], labels[-side:, -side:]
        place = "dubai" if "tile3" in tile else "dubai test"
        if task == "buildings":
            labels = np.where(labels == NONE, NONE, labels == 0).astype(np.uint8)
        kind = "buildings" if task == "buildings" else "dubai"
        yield Part(place=place, kind=kind, gsd_m=1.0, image=image, labels=labels)
    yield from _far(data, task)
    for seed, gsd_m in ((7, coarse), (11, fine), (23, coarse)):
        image, labels = draw_scene(512, seed, gsd_m)
        if task == "buildings":
            labels = (labels == 0).astype(np.uint8)
        kind = "buildings" if task == "buildings" else "dubai"
        yield Part(place="drawn", kind=kind, gsd_m=gsd_m, image=image, labels=labels)
    if task == "landcover":
        yield from _weak(data)
    image, labels = _read(data / f"unlabelled/{SPAIN}.tif", None, 0.4)
    labels[:] = 0
    height, width = labels.shape
    for left, top, right, bottom in SPAIN_UNKNOWN:
        labels[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1] = (
            NONE
        )
    yield Part(place="spain", kind="none", gsd_m=0.4, image=image, labels=labels)
    for path in sorted((data / "naip_trees/images").glob("*.tif")):
        roofs = [(shape, 0) for name, shape in marks_of(path.stem) if name == "building"]
        if path.stem.startswith(("santa_monica", "bishop")) and roofs:
            image, _ = _read(path, None, None)
            labels = rasterize(roofs, image.shape[1:], fill=NONE, dtype=np.uint8)
            yield Part(place="roofs", kind="roofs", gsd_m=0.6, image=image, labels=labels)


def marks_of(chip: str) -> list[tuple[str, dict[str, Any]]]:
    """Marks by eye in a chip of `naip_trees`: class, "ground" or "unknown", and polygon in px."""
    found = json.loads(MARKS.read_text()).get(chip, {})
    return [
        (name, {"type": "Polygon", "coordinates": [[*ring, ring[0]]]})
        for name, rings in found.items()
        for ring in rings
    ]


def _far(data: Path, task: str) -> Iterator[Part]:
    name = "zurich_lake_2690000_1234000"
    image, labels = _read(data / f"far_test/{name}.tif", data / f"far_test/{name}_mask.png", None)
    table = np.full(256, NONE, np.uint8)
    table[1:6] = (1, 0, 0, 0, 0) if task == "buildings" else (0, 1, 1, 2, 3)
    kind = "buildings" if task == "buildings" else "zurich"
    yield Part(place="zurich", kind=kind, gsd_m=0.5, image=image, labels=table[labels])
    for place in ("paris", "shanghai"):
        path = data / f"far_test/spacenet_{place}.png"
        image, labels = _read(path, path.with_name(f"{path.stem}_mask.png"), None)
        yield Part(place=place, kind="buildings", gsd_m=0.3, image=image, labels=labels)


def _weak(data: Path) -> Iterator[Part]:
    """Vegetation against the rest: eight chips of each city."""
    table = np.full(256, NONE, np.uint8)
    table[1:4] = 0, 0, 1
    for place in ("santa_monica", "bishop"):
        for path in sorted((data / "naip_trees/images").glob(f"{place}_*.tif"))[:8]:
            image, labels = _read(path, data / f"naip_trees/masks/{path.stem}.png", None)
            yield Part(place=place, kind="weak", gsd_m=0.6, image=image, labels=table[labels])


def _read(image: Path, mask: Path | None, gsd_m: float | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Red, green and blue, and labels, at a resolution; None keeps the scene's own."""
    with rasterio.open(image) as scene:
        height, width = scene.shape
        if gsd_m is not None:
            shrink = ground_m(scene) / gsd_m
            height, width = round(height * shrink), round(width * shrink)
        pixels = scene.read([1, 2, 3], out_shape=(3, height, width), resampling=Resampling.average)
    if mask is None:
        return pixels, np.full((height, width), NONE, np.uint8)
    with rasterio.open(mask) as labels:
        return pixels, labels.read(1, out_shape=(height, width), resampling=Resampling.nearest)


def ground_m(scene: rasterio.DatasetReader) -> float:
    """Metres a pixel on the ground, of a scene in Mercator or in metres."""
    size = float(scene.res[0])
    if scene.crs is None or scene.crs.to_epsg() != 3857:
        return size
    middle = (scene.bounds.top + scene.bounds.bottom) / 2
    return size / float(np.cosh(middle / 6378137.0))


def cached(data: Path, task: str, cache: Path) -> list[tuple[Part, Path]]:
    """The parts as GeoTIFFs that carry their resolution, and their labels."""
    folder = cache / task
    index = folder / "index.json"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, part in enumerate(parts(data, task)):
            path = folder / f"{number:03d}.tif"
            _, height, width = part.image.shape
            profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8"}
            origin = from_origin(500_000, 5_000_000, part.gsd_m, part.gsd_m)
            with rasterio.open(path, "w", **profile, crs="EPSG:32631", transform=origin) as target:
                target.write(part.image)
            np.save(path.with_suffix(".npy"), part.labels)
            rows.append({"place": part.place, "kind": part.kind, "gsd_m": part.gsd_m})
        index.write_text(json.dumps(rows))
    found = []
    for number, row in enumerate(json.loads(index.read_text())):
        path = folder / f"{number:03d}.tif"
        labels = np.load(path.with_suffix(".npy"))
        found.append((Part(**row, image=np.empty((3, 0, 0), np.uint8), labels=labels), path))
    return found


def measure(
    model: TrainedModel,
    found: list[tuple[Part, Path]],
    gsd_m: float | None = None,
    refine: RefineConfig | None = None,
    tta: str = "none",
) -> dict[str, Counts]:
    """Map each place's parts and count."""
    counts: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (part, path) in enumerate(found):
            target = Path(folder) / f"{number}.tif"
            predict(path, target, model=model, config=PredictConfig(gsd_m=gsd_m, tta=tta), refine=refine)
            with rasterio.open(target) as made:
                mapped = _grouped(model, part.kind, made.read(1))
            blocks = _confusion(part, mapped)
            if part.place not in counts:
                boundary = BoundaryCounts(classes=len(KINDS[part.kind]), widths=(BOUNDARY_PX,))
                counts[part.place] = Counts(kind=part.kind, blocks=blocks, boundary=boundary)
            else:
                before = counts[part.place]
                blocks = np.concatenate([before.blocks, blocks])
                counts[part.place] = dataclasses.replace(before, blocks=blocks)
            labels = np.where(mapped == NONE, NONE, part.labels)
            counts[part.place].boundary.add_bands(mapped, labels, (slice(None), slice(None)))
    return counts


def _grouped(model: TrainedModel, kind: str, mapped: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map in the classes of labels of a kind, as many where it has none of them; NONE stays."""
    kinds = KINDS[kind]
    table = np.full(256, len(kinds), np.uint8)
    for index, name in enumerate(model.spec.class_names):
        for group, (_, members) in enumerate(kinds):
            if name in members or (name == "background" and "land" in members):
                table[index] = group
    table[NONE] = NONE
    return table[mapped]


def _confusion(part: Part, mapped: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Confusion matrices of the blocks that have labels."""
    kinds = KINDS[part.kind]
    size = len(kinds), len(kinds) + 1
    known = (part.labels < len(kinds)) & (mapped != NONE)
    rows, cols = (places // BLOCK_PX for places in np.indices(mapped.shape))
    blocks = rows * (mapped.shape[1] // BLOCK_PX + 1) + cols
    numbers, order = np.unique(blocks[known], return_inverse=True)
    cells = (order * size[0] + part.labels[known]) * size[1] + mapped[known]
    return np.bincount(cells, minlength=len(numbers) * size[0] * size[1]).reshape(-1, *size)


def _scores(kind: str, matrix: NDArray[Any]) -> dict[str, float]:
    names = [name for name, _ in KINDS[kind]]
    if kind in ("none", "roofs"):
        return {"wrong share": float(matrix[0, 1] / max(matrix[0].sum(), 1))}
    hits, square = matrix.diagonal(), matrix[:, : len(names)]
    union = matrix.sum(1) + square.sum(0) - hits
    iou = {name: float(hit / whole) for name, hit, whole in zip(names, hits, union, strict=True) if whole}
    score = iou["building"] if kind == "buildings" else float(np.mean(list(iou.values())))
    return {"score": score, **iou}


def seen_places(model: TrainedModel) -> tuple[str, ...]:
    """Places whose scenes the model was trained on: as it says, or those of the models of before."""
    told = model.spec.training.get("places")
    return tuple(told) if told else SEEN.get(task_of(model), ())


def task_of(model: TrainedModel) -> str:
    return "buildings" if len(model.spec.classes) == 2 else "landcover"


Results = list[tuple[str, TrainedModel, dict[str, Counts]]]


def unseen_places(results: Results) -> list[str]:
    """Places with labels on which no model of the table was trained."""
    ever = {place for _, model, _ in results for place in seen_places(model)}
    return [place for place in results[0][2] if place not in BY_EYE and place.split()[0] not in ever]


def means(results: Results, places: list[str]) -> list[tuple[float, ...]]:
    """Mean over places of each model, its interval, and that of its difference from the first model's."""
    rows: list[tuple[float, ...]] = []
    first = None
    for _, _, counts in results:
        mean = float(np.mean([counts[place].scores()["score"] for place in places]))
        drawn = np.mean([counts[place].resampled() for place in places], axis=0)
        first = drawn if first is None else first
        low, high = interval_of(np.stack([drawn, drawn - first]))
        rows.append((mean, *(float(end) for pair in zip(low, high, strict=True) for end in pair)))
    return rows


def show(results: Results, boundaries: bool = False) -> str:
    """One column a model; means over all places and over those that no model of the table was trained on."""
    lines = [
        "| place | " + " | ".join(name for name, _, _ in results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    places = [place for place in results[0][2] if place not in BY_EYE]
    for place in places:
        cells = []
        for _, model, counts in results:
            found = counts[place].scores()
            star = "*" if place.split()[0] in seen_places(model) else ""
            more = [f"{value:.2f}" for key, value in found.items() if key != "score"]
            cell = f"{found['score']:.3f}{star}" + (f" ({', '.join(more)})" if len(more) > 2 else "")
            sharp = boundaries and counts[place].kind != "weak"
            cells.append(cell + (f"; {counts[place].boundary_iou():.3f}" if sharp else ""))
        lines.append(f"| {place} | " + " | ".join(cells) + " |")
    unseen = unseen_places(results)
    for title, chosen in (("mean", places), (f"mean of {', '.join(unseen)}", unseen)):
        if not chosen:
            continue
        rows = means(results, chosen)
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high, *_ in rows]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
        if len(rows) > 1:
            cells = ["", *(f"{low:+.3f} to {high:+.3f}" for *_, low, high in rows[1:])]
            lines.append("| its difference from the first | " + " | ".join(cells) + " |")
    for place in BY_EYE:
        if place in results[0][2]:
            wrong = [counts[place].scores()["wrong share"] for _, _, counts in results]
            lines.append(f"| {place}, share wrong | " + " | ".join(f"{value:.4f}" for value in wrong) + " |")
    return "\n".join(lines)


def write(name: str, model: TrainedModel, counts: dict[str, Counts]) -> None:
    """Keep the scores by place in the model's file."""
    seen = seen_places(model)
    places = {
        place: {"score": round(values["score"], 3), "trained": place.split()[0] in seen}
        for place, values in ((place, found.scores()) for place, found in counts.items())
        if "score" in values
    }
    spec = dataclasses.replace(model.spec, scores=model.spec.scores | {"places": places})
    registry.rewrite_spec(name, registry.model_file(name), spec, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", action="append", required=True, help="name or file; all of one task")
    parser.add_argument(
        "--gsd", type=float, help="resolution that the networks see instead of their own choice"
    )
    parser.add_argument("--tta", default="none", help="as in rsseg predict")
    parser.add_argument(
        "--refine",
        action="append",
        default=[],
        metavar="REFINER",
        help="name or file: score each model once more with it; repeatable",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/places"))
    parser.add_argument("--places", help="these alone: the starts of their names, as kampala,zurich")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="into the model files too, for `models list`")
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    models = [load_model(name) for name in args.model]
    if len({task_of(model) for model in models}) != 1:
        parser.error("--model: models of one task; run those of another by themselves")
    found = cached(args.data, task_of(models[0]), args.cache)
    if args.places:
        found = [item for item in found if item[0].place.startswith(tuple(args.places.split(",")))]
    results = []
    for name, model in zip(args.model, models, strict=True):
        for refiner in ("", *args.refine):
            started = time.perf_counter()
            refine = RefineConfig(refiner=refiner) if refiner else None
            counts = measure(model, found, args.gsd, refine, args.tta)
            results.append((" + ".join(Path(file).stem for file in (name, refiner) if file), model, counts))
            if args.write and not refiner:
                write(name, model, counts)
            if not args.json:
                print(f"{results[-1][0]}: {time.perf_counter() - started:.0f} s", flush=True)
    if not args.json:
        print(show(results, bool(args.refine)))
        return
    table: dict[str, dict[str, dict[str, float]]] = {
        name: {
            place: found.scores() | {f"boundary IoU {BOUNDARY_PX} px": found.boundary_iou()}
            for place, found in counts.items()
        }
        for name, _, counts in results
    }
    if unseen := unseen_places(results):
        names = "mean", "low", "high", "gain_low", "gain_high"
        for rows, values in zip(table.values(), means(results, unseen), strict=True):
            rows["mean of unseen"] = dict(zip(names, values, strict=True))
    print(json.dumps(table))


if __name__ == "__main__":
    main()
