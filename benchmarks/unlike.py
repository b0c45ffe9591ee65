"""How well `predict`'s distance from the training data separates familiar scenes from others.

    python benchmarks/unlike.py data DATA --task landcover -o calibration
    rsseg models calibrate landcover --scenes calibration/landcover.csv \
        --training @calibration/landcover.txt -o landcover.safetensors
    python benchmarks/unlike.py table DATA --model landcover.safetensors

`data` writes the lists for `rsseg models calibrate`: labelled validation scenes set the temperature, further
ones without labels only the limit of the distance. `table` maps scenes and prints their distances, 1 being
the limit.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from rsseg_cli.data.synthetic import draw_scene
from rsseg_cli.pipeline import predict
from rsseg_cli.weights import TrainedModel, load_model

OAM = ("zanzibar_z21_0", "nepal_z21_0", "nepal_z21_1")
NAIP = ("chico", "claremont", "riverside", "long_beach")
SPAIN = ("0345_6-4_0", "0398_3-1_0", "0425_1-1_1", "0425_2-1_0", "test_raster")
GSD_M = {"landcover": (0.4, 1.0), "buildings": (0.2, 0.3)}
Pixels = NDArray[np.uint8]


def write(path: Path, image: Pixels, gsd_m: float) -> Path:
    count, height, width = image.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    origin = from_origin(500_000, 5_000_000, gsd_m, gsd_m)
    with rasterio.open(path, "w", **profile, crs="EPSG:32631", transform=origin) as target:
        target.write(image)
    return path


def drawn(folder: Path, task: str, seeds: range) -> list[Path]:
    """Drawn scenes, at two resolutions in turn."""
    paths = []
    for seed in seeds:
        gsd_m = GSD_M[task][seed % 2]
        paths.append(write(folder / f"{task}_drawn_{seed}.tif", draw_scene(640, seed, gsd_m)[0], gsd_m))
    return paths


def winter(image: Pixels) -> Pixels:
    """Snow on all that is not dark, less light on the rest."""
    values = image.astype(np.float32)
    low, high = np.percentile(values.mean(0), (2, 98))
    light = np.clip((values.mean(0) - low) / (high - low), 0, 1)
    snow = np.stack([215 + 35 * light, 220 + 33 * light, 232 + 22 * light])
    share = np.clip((light - 0.15) / 0.25, 0, 1)
    return np.clip(share * snow + (1 - share) * 0.8 * values, 0, 255).astype(np.uint8)


def write_lists(data: Path, task: str, folder: Path) -> None:
    """Write TASK.csv of validation scenes and TASK.txt of training scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    dubai, oam = data / "dubai", data / "oam_buildings"
    labelled = (
        [(path, dubai / f"masks/{path.stem}.png") for path in sorted(dubai.glob("images/tile3_*"))]
        if task == "landcover"
        else [(oam / "images/zanzibar_z21_1.tif", oam / "masks/zanzibar_z21_1.tif")]
    )
    others = [*sorted((data / "naip_trees/images").glob("santa_monica_*"))[:16]]
    others += [oam / "images/zanzibar_z21_1.tif"] if task == "landcover" else []
    others += drawn(folder, task, range(1000, 1010))
    with (folder / f"{task}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "labels", "split"))
        rows.writerows((image.resolve(), labels.resolve(), "val") for image, labels in labelled)
        for image in others:
            with rasterio.open(image) as scene:
                blank = np.full((1, *scene.shape), 255, np.uint8)
            labels = write(folder / f"{task}_{image.stem}.unlabelled.tif", blank, 1.0)
            with rasterio.open(image) as scene, rasterio.open(labels, "r+") as target:
                target.crs, target.transform = scene.crs, scene.transform
            rows.writerow((image.resolve(), labels.resolve(), "val"))
    seen = [oam / f"images/{name}.tif" for name in OAM] + [data / "banepa/scene.tif"]
    seen += [data / f"unlabelled/spain_pnoa25_{name}.tif" for name in SPAIN]
    for city in NAIP:
        seen += sorted((data / "naip_trees/images").glob(f"{city}_*"))[::2]
    if task == "landcover":  # for buildings it is enlarged five times
        seen += sorted(dubai.glob("images/tile[12567]_*"))
    seen += drawn(folder, task, range(2000, 2024))
    (folder / f"{task}.txt").write_text("".join(f"{path.resolve()}\n" for path in seen), encoding="utf-8")


def groups(data: Path, task: str, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Scenes to measure, by what they are to the model."""
    naip, oam = data / "naip_trees/images", data / "oam_buildings/images"
    yield "validation: santa_monica", sorted(naip.glob("santa_monica_*"))[16:32]
    yield "validation: zanzibar", [oam / "zanzibar_z21_1.tif"]
    if task == "landcover":
        yield "validation: dubai 3", sorted((data / "dubai/images").glob("tile3_*"))
        yield "test: dubai 8", sorted((data / "dubai/images").glob("tile8_*"))
    yield "validation: drawn", drawn(folder, task, range(7, 13))
    yield "test: kampala", [oam / "kampala_z21_1.tif"]
    yield "test: bishop", sorted(naip.glob("bishop_*"))
    for path in sorted((data / "far_test").iterdir()):
        if path.suffix in (".tif", ".png") and "mask" not in path.stem:
            yield f"far: {path.stem[:24]}", [path]
    for path in sorted((data / "unlabelled").glob("*.tif")):
        with rasterio.open(path) as scene:
            bands = scene.count
        if bands >= 3:
            known = "trained" if path.stem.removeprefix("spain_pnoa25_") in SPAIN else "unlabelled"
            yield f"{known}: {path.stem[:24]}", [path]
    snow = []
    for path in drawn(folder, task, range(300, 308)):
        with rasterio.open(path) as scene:
            snow.append(write(folder / f"winter_{path.stem}.tif", winter(scene.read()), scene.res[0]))
    yield "winter: drawn", snow
    with rasterio.open(oam / "zanzibar_z21_1.tif") as scene:
        image, gsd_m = scene.read([1, 2, 3])[:, :2048, :2048], 0.074
    yield "winter: zanzibar", [write(folder / "winter_zanzibar.tif", winter(image), gsd_m)]


def show_table(data: Path, model: TrainedModel, task: str) -> None:
    print("| scenes | number | distance | beyond the limit | colour | texture | features |")
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, paths in groups(data, task, folder):
            found = [predict(path, folder / "map.tif", model=model, overwrite=True).unlike for path in paths]
            rows = np.array(
                [(one.distance, one.colour, one.texture, one.features) for one in found if one is not None]
            )
            beyond = f"{(rows[:, 0] > 1).sum()} of {len(rows)}"
            distance, *kinds = (f"{value:.2f}" for value in rows.mean(0))
            print(f"| {title} | {len(rows)} | {distance} | {beyond} | {' | '.join(kinds)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("data")
    listing.add_argument("data", type=Path)
    listing.add_argument("--task", choices=tuple(GSD_M), required=True)
    listing.add_argument("-o", "--output", type=Path, required=True)
    table = commands.add_parser("table")
    table.add_argument("data", type=Path)
    table.add_argument("--model", required=True)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.command == "data":
        write_lists(args.data, args.task, args.output)
        return
    model = load_model(args.model)
    show_table(args.data, model, "buildings" if len(model.spec.classes) == 2 else "landcover")


if __name__ == "__main__":
    main()
