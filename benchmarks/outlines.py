"""What `rsseg vectorize --regularize` makes of buildings, beside the library buildingregulariser.

    python benchmarks/outlines.py DATA                   three scenes, mapped with `buildings`
    python benchmarks/outlines.py DATA --maps FOLDER     the same; maps are kept there
    python benchmarks/outlines.py DATA --min-area 5      objects and holes below 5 m2 are merged first
    python benchmarks/outlines.py picture docs/outlines.jpg   a drawn map, simplified and squared
    python benchmarks/outlines.py memory --maps FOLDER   peak memory, the map up to four times as high

DATA holds `oam_buildings`. Each map becomes polygons with `--simplify 0.3`; those of the class building are
what --regularize and the library start from. A building has changed where its corners have. Angles are those
of rings that have changed, where they turn by more than 5 degrees; right ones within 2 degrees. Milliseconds
are for each building of the map: of the stage of `vectorize --regularize` that squares, by one job, the least
of some calls, and of the library's call. The library (`rsseg[bench]`) is run
with its defaults but for its simplification, which is 0.3 m too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import rasterio.windows
import shapely

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
SCENES = ("kampala_z21_1", "zanzibar_z21_0", "nepal_z21_0")
SIMPLIFY_M = 0.3
COLOURS = [(202, 222, 178), (214, 96, 77), (244, 165, 130), (150, 150, 150)]  # of the drawn map's classes
TURN, RIGHT = np.radians(5), np.radians(2)
COLUMNS = {
    "buildings": "{:d}",
    "changed": "{:.1%}",
    "valid": "{:.1%}",
    "overlap m2": "{:.2f}",
    "IoU with truth": "{:.4f}",
    "IoU >= 0.85": "{:.1%}",
    "IoU < 0.7": "{:.1%}",
    "right angles": "{:.1%}",
    "ms": "{:.2f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder of the scenes, memory, or picture")
    parser.add_argument("output", nargs="?", type=Path, help="of picture")
    parser.add_argument("--maps", type=Path, help="folder where maps are kept")
    parser.add_argument("--min-area", default="0", help="of objects and holes, m2")
    parser.add_argument("--scenes", nargs="+", default=SCENES)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        maps = arguments.maps or Path(temporary)
        maps.mkdir(parents=True, exist_ok=True)
        if arguments.data == "picture":
            picture(arguments.output or Path("outlines.jpg"), Path(temporary))
            return
        if arguments.data == "memory":
            memory(maps / f"{SCENES[1]}.map.tif", Path(temporary))
            return
        for scene in arguments.scenes:
            data = Path(arguments.data) / "oam_buildings"
            labels = maps / f"{scene}.map.tif"
            if not labels.exists():
                image = str(data / "images" / f"{scene}.tif")
                command = [sys.executable, "-m", "rsseg_cli", "predict", image, "--model", "buildings"]
                subprocess.run([*command, "-o", str(labels), "-q"], cwd=ROOT, check=True)
            compare(labels, data / "masks" / f"{scene}.tif", arguments, Path(temporary))


def compare(labels: Path, truth: Path, arguments: argparse.Namespace, folder: Path) -> None:
    """Print the table of a scene."""
    from rsseg_cli.config import VectorConfig
    from rsseg_cli.vector import vectorize

    area = float(arguments.min_area)
    outputs = {"--simplify": folder / "simplified.gpkg", "--regularize": folder / "squared.gpkg"}
    squaring = []
    for _ in range(arguments.repeats + 1):  # the first loads libraries
        for name, output in outputs.items():
            config = VectorConfig(
                simplify_m=SIMPLIFY_M,
                min_area_m2=area,
                fill_holes_m2=area,
                regularize=name == "--regularize",
                overwrite=True,
                jobs=1,
            )
            stages = vectorize(labels, output, config).stages
        squaring.append(stages["square"])
    frames = {name: buildings(output) for name, output in outputs.items()}
    before = frames["--simplify"]
    start = time.process_time()
    frames["buildingregulariser"] = library(before)
    took = {
        "--simplify": 0.0,
        "--regularize": min(squaring[1:]),
        "buildingregulariser": time.process_time() - start,
    }
    print(f"{labels.name}, --simplify {SIMPLIFY_M} --min-area {arguments.min_area}")
    print(f"  {'':<20}" + "".join(f"{name:>16}" for name in COLUMNS))
    for name, frame in frames.items():
        row = measures(frame, before, truth) | {"ms": 1000 * took[name] / len(before)}
        print(f"  {name:<20}" + "".join(f"{form.format(row[key]):>16}" for key, form in COLUMNS.items()))
    faults = whole_faults(outputs["--regularize"])
    print(f"  --regularize, all classes: {faults} edges that neighbours do not share")
    same = seams(labels, arguments)
    print(
        f"  --regularize, blocks of 100, 333 and all rows, 1 and 2 jobs: {'equal' if same else 'DIFFERENT'}"
    )


def buildings(path: Path) -> Any:
    """The polygons of the class building."""
    import geopandas

    frame = geopandas.read_file(path, layer=path.stem)
    return frame[frame["class_name"] == "building"].reset_index(drop=True)


def library(frame: Any) -> Any:
    """The same buildings regularized; one that is lost is empty."""
    from buildingregulariser import regularize_geodataframe

    numbered = frame[["geometry"]].copy()
    numbered["number"] = np.arange(len(frame))
    made = regularize_geodataframe(numbered, num_cores=1, simplify_tolerance=SIMPLIFY_M)
    shapes = np.full(len(frame), shapely.Polygon(), object)
    shapes[made["number"].to_numpy()] = made.geometry.to_numpy()
    return frame.set_geometry(shapes, crs=frame.crs)


def measures(frame: Any, before: Any, truth: Path) -> dict[str, Any]:
    """The columns of a table's row."""
    shapes, first = frame.geometry.to_numpy(), before.geometry.to_numpy()
    changed = ~shapely.equals_exact(shapes, first, 1e-6)
    ious = np.array([iou(one, other) for one, other in zip(shapes, first, strict=True)])
    valid = shapely.is_valid(shapes)
    with rasterio.open(truth) as dataset:
        labels = dataset.read(1)
        drawn = rasterio.features.rasterize(
            [shape for shape in shapes if not shape.is_empty], labels.shape, transform=dataset.transform
        )
    known = labels != 255
    both, either = (drawn == 1) & (labels == 1) & known, ((drawn == 1) | (labels == 1)) & known
    turns = corners(shapes, first)
    return {
        "buildings": len(shapes),
        "changed": changed.mean(),
        "valid": valid.mean(),
        "overlap m2": overlap(shapely.make_valid(shapes)) * area_factor(frame),
        "IoU with truth": both.sum() / either.sum(),
        "IoU >= 0.85": (ious >= 0.85).mean(),
        "IoU < 0.7": (ious < 0.7).mean(),
        "right angles": (np.abs(turns - np.pi / 2) < RIGHT).mean() if len(turns) else np.nan,
    }


def iou(one: Any, other: Any) -> float:
    one = shapely.make_valid(one)
    return shapely.area(shapely.intersection(one, other)) / shapely.area(shapely.union(one, other))


def corners(shapes: Any, before: Any) -> Any:
    """Angles of changed rings, of more than TURN. Mercator, which all three scenes have, keeps them."""
    turns = [np.zeros(0)]
    rings, known = shapely.get_rings(shapely.get_parts(shapes)), shapely.get_rings(before)
    stayed = set(shapely.to_wkb(shapely.normalize(known)).tolist())
    for ring in rings[[blob not in stayed for blob in shapely.to_wkb(shapely.normalize(rings)).tolist()]]:
        points = shapely.get_coordinates(ring)[:-1]
        if len(points):
            steps = np.diff(points, axis=0, append=points[:1])
            angle = np.arctan2(steps[:, 1], steps[:, 0])
            turns.append(np.abs((angle - np.roll(angle, 1) + np.pi) % (2 * np.pi) - np.pi))
    together = np.concatenate(turns)
    return together[together > TURN]


def overlap(shapes: Any) -> float:
    """Area in more than one polygon."""
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = one < other
    return float(shapely.area(shapely.intersection(shapes[one[pairs]], shapes[other[pairs]])).sum())


def area_factor(frame: Any) -> float:
    """Square metres on the ground of one in the CRS."""
    return float(frame["area_m2"].sum() / frame.geometry.area.sum())


def whole_faults(path: Path) -> int:
    """Polygons of all classes that do not fit their neighbours."""
    import geopandas

    shapes = geopandas.read_file(path, layer=path.stem).geometry.to_numpy()
    return int((~shapely.is_empty(shapely.coverage_invalid_edges(shapes))).sum())


def seams(labels: Path, arguments: argparse.Namespace) -> bool:
    """Whether blocks and jobs make no difference, to the byte."""
    from rsseg_cli.config import VectorConfig
    from rsseg_cli.vector import to_geodataframe

    area = float(arguments.min_area)
    found = []
    for rows, jobs in ((0, 1), (0, 2), (333, 2), (100, 1)):
        config = VectorConfig(
            simplify_m=SIMPLIFY_M,
            min_area_m2=area,
            fill_holes_m2=area,
            regularize=True,
            jobs=jobs,
            block_rows=rows,
        )
        found.append(to_geodataframe(labels, config).to_wkb())
    return all(found[0].equals(frame) for frame in found[1:])


def memory(labels: Path, folder: Path) -> None:
    """Print peak memory by height."""
    from vectorize import measure
    from vectorize import rsseg as command

    with rasterio.open(labels) as dataset:
        values, profile, tags = dataset.read(1), dataset.profile, dataset.tags()
    for times in (1, 2, 4):
        tall = folder / f"{times}.tif"
        profile.update(height=times * len(values), driver="GTiff", tiled=True)
        with rasterio.open(tall, "w", **profile) as dataset:
            dataset.update_tags(**tags)
            for number in range(times):
                window = rasterio.windows.Window(0, number * len(values), values.shape[1], len(values))
                dataset.write(values, 1, window=window)
        for more in ([], ["--regularize"]):
            peak = measure(command(tall, folder / f"{times}{len(more)}.gpkg", 1, "--simplify", "0.3", *more))[
                0
            ]["mb"]
            name = " ".join(more) or "--simplify"
            print(f"  {values.shape[1]} x {times * len(values)} px, {name}: {peak:.0f} MB")


def picture(path: Path, folder: Path) -> None:
    """Draw a map with ragged buildings: its pixels, simplified, squared."""
    from PIL import Image, ImageDraw

    from rsseg_cli.config import VectorConfig
    from rsseg_cli.vector import to_geodataframe

    labels = drawn_map(folder / "drawn.tif")
    with rasterio.open(labels) as dataset:
        values, to_pixels = dataset.read(1), ~dataset.transform
    scale, gap = 3, 12
    height, width = (scale * side for side in values.shape)
    sheet = Image.new("RGB", (3 * width + 2 * gap, height), "white")
    pixels = np.array(COLOURS, np.uint8)[values].repeat(scale, axis=0).repeat(scale, axis=1)
    sheet.paste(Image.fromarray(pixels), (0, 0))
    for number, regularize in enumerate((False, True), 1):
        config = VectorConfig(simplify_m=0.3, min_area_m2=2, fill_holes_m2=2, regularize=regularize)
        frame = to_geodataframe(labels, config).sort_values("area_m2", ascending=False)  # no holes are drawn
        panel = Image.new("RGB", (4 * width, 4 * height))
        draw = ImageDraw.Draw(panel)
        for fill in (True, False):
            for value, shape in zip(frame["class_index"], frame.geometry, strict=True):
                if fill or value in (1, 2):
                    points = [to_pixels * xy for xy in shape.exterior.coords]
                    line = [(4 * scale * x, 4 * scale * y) for x, y in points]
                    draw.polygon(line, fill=COLOURS[value]) if fill else draw.line(line, "black", 8)
        sheet.paste(panel.resize((width, height), Image.Resampling.LANCZOS), (number * (width + gap), 0))
    sheet.save(path, quality=90)


def drawn_map(path: Path) -> Path:
    """A class raster of buildings and a road with ragged borders."""
    from scipy.ndimage import gaussian_filter
    from shapely import affinity

    def turned(shape: Any, angle: float, x: float, y: float) -> Any:
        return affinity.translate(affinity.rotate(shape, angle, origin=(0, 0)), x, y)

    ell = shapely.Polygon([(0, 0), (20, 0), (20, 9), (10, 9), (10, 17), (0, 17)])
    court = shapely.box(0, 0, 24, 20) - shapely.box(7, 6, 17, 14)
    shapes = [
        (turned(shapely.box(-5, 0, 80, 6), 12, 0, 31), 3),
        (turned(ell, 24, 11, 4), 1),
        (turned(court, -16, 41, 9), 1),
    ]
    shapes += [(turned(shapely.box(9 * k, 0, 9 * k + 9, 11 + k % 2), 12, 3, 43), 1 + k % 2) for k in range(4)]
    shapes += [(shapely.Point(58, 65).buffer(4.5), 1), (turned(shapely.box(0, 0, 8, 5), 50, 8, 58), 1)]
    pixel, size = 0.3, (250, 240)
    drawn = rasterio.features.rasterize(
        [(shapely.transform(shape, lambda xy: xy / pixel), value) for shape, value in shapes],
        size,
        dtype="uint8",
    )
    generator = np.random.default_rng(0)
    noise = [gaussian_filter(generator.standard_normal(size), 2.0) for _ in range(2)]
    rows, cols = np.indices(size) + [np.rint(0.8 * plane / plane.std()).astype(int) for plane in noise]
    ragged = drawn[rows.clip(0, size[0] - 1), cols.clip(0, size[1] - 1)]
    transform = rasterio.Affine(pixel, 0, 500000, 0, -pixel, 5400000)
    profile = {
        "driver": "GTiff",
        "height": size[0],
        "width": size[1],
        "count": 1,
        "dtype": "uint8",
        "nodata": 255,
    }
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as dataset:
        dataset.write(ragged, 1)
        dataset.update_tags(CLASS_0="grass", CLASS_1="building", CLASS_2="house", CLASS_3="road")
    return path


if __name__ == "__main__":
    main()
