"""Imports run one way and commands start light: told from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"config", "errors", "heap", "train_config"}
RASTER = {
    "raster",
    "area",
    "bands",
    "class_names",
    "creation",
    "gdal",
    "halve",
    "output",
    "output_vrt",
    "pixels",
    "reader",
    "replace",
    "row_files",
    "scene_info",
    "stretch",
}  # fmt: skip; one job, reading and writing rasters, in several files
PARTS = RASTER | {"tiling", "engine", "stitch", "streaming", "resample", "result"}
VECTOR = {path.stem for path in (ROOT / "rsseg_cli").glob("vector*.py")}
REFINE = {path.stem for path in (ROOT / "rsseg_cli").glob("refine_*.py")}
PIPELINE = {
    "pipeline",
    "job",
    "target",
    "passes",
    "disk_space",
    "fingerprint",
    "journal",
    "lock",
    "memory",
    "track",
    "publication",
    "work_folder",
    "work_place",
} | REFINE  # fmt: skip; both passes over a scene
BATCH = {path.stem for path in (ROOT / "rsseg_cli").glob("batch*.py")} | {
    "manifest",
    "mosaic",
    "scene_list",
    "stac",
    "vrt",
}  # many scenes
SHARED = {path.stem for path in (ROOT / "rsseg_cli").glob("ray_*.py")} | {"row_bands"}  # among machines
DRAWN = {path.stem for path in (ROOT / "rsseg_cli").glob("synthetic*.py")}
SHOWN = {"metrics", "preview"}
TRUTH = {"labels", "label_format", "label_raster", "label_shrink", "label_vector"}
SCORED = {"boundary", "edge_weights", "map_reader", "scoring", "score_pair", "score_tiles"}
REPORT = {path.stem for path in (ROOT / "rsseg_cli").glob("report*.py")}
DATA = {
    "datasets", "benchmark_data", "benchmark_known", "benchmark_torchgeo", "class_table", "data_split",
    "data_table", "scene_files", "scene_load",
}  # fmt: skip
REFINERS = {"coarse_degrade", "coarse_maps"} | {
    path.stem for path in (ROOT / "rsseg_cli").glob("refiner_*.py")
}  # their training
LEARNED = DATA | {
    "crops",
    "model_card",
    "optim",
    "recipes",
    "starting",
    "train_module",
    "train_progress",
    "trainer",
    "training",
}
# what each part may import of the program; parts of a group import one another only where it says so here
ALLOWED = {
    "errors": set(),
    "heap": set(),
    "config": {"errors"},
    "train_config": {"errors"},
    **dict.fromkeys(PARTS | SHOWN, BASE),
    **dict.fromkeys(RASTER, BASE | RASTER),
    **dict.fromkeys(TRUTH, BASE | RASTER | TRUTH),
    **dict.fromkeys(DRAWN, BASE | DRAWN | RASTER),
    **dict.fromkeys(REPORT, BASE | RASTER | SHOWN | TRUTH | REPORT),
    "compare": BASE,
    "edge_weights": set(),
    "boundary": BASE | {"edge_weights", "metrics"},
    "map_reader": BASE | RASTER | TRUTH,
    "score_tiles": BASE | RASTER | TRUTH | {"metrics"},
    "scoring": BASE | RASTER | TRUTH | SHOWN | SCORED | {"weights"},
    "score_pair": BASE | RASTER | TRUTH | SHOWN | SCORED | {"weights", "class_table"},
    "models": set(),
    "weights": BASE | {"models"},
    **dict.fromkeys(VECTOR, BASE | RASTER | VECTOR),
    **dict.fromkeys(PIPELINE, BASE | PARTS | SHOWN | PIPELINE | VECTOR | {"weights", "label_format"}),
    **dict.fromkeys(
        BATCH, BASE | PARTS | SHOWN | BATCH | VECTOR | {"weights", "pipeline", "refine_job", "lock"}
    ),
    **dict.fromkeys(SHARED, BASE | PARTS | PIPELINE | BATCH | SHARED),
    **dict.fromkeys(LEARNED, BASE | PARTS | SHOWN | TRUTH | DRAWN | LEARNED | {"weights", "models"}),
    **dict.fromkeys(
        REFINERS,
        BASE | PARTS | SHOWN | TRUTH | LEARNED | REFINERS | {"boundary", "pipeline", "weights", "models"},
    ),
    "evaluation": BASE
    | PARTS
    | SHOWN
    | TRUTH
    | SCORED
    | LEARNED
    | REPORT
    | {"weights", "pipeline", "compare"},
    "cli": BASE
    | PARTS
    | VECTOR
    | SHOWN
    | TRUTH
    | SCORED
    | DRAWN
    | LEARNED
    | REFINERS
    | REPORT
    | BATCH
    | SHARED
    | {"weights", "models", "pipeline", "refine_job", "refine_scene", "compare", "evaluation"},
    "__init__": {"config", "pipeline", "refine_scene", "vector_file"},
    "__main__": {"cli"},
}
LIGHT = {"rsseg_cli", "typer"}  # beside the standard library, all that a command's file may import at its top


def sources() -> list[Path]:
    return [
        path
        for folder in ("rsseg_cli", "models", "weights")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def part_of(path: Path) -> str:
    """The part of the program a file belongs to: a module of `rsseg_cli`, or a folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "rsseg_cli" else parts[0]


def run_time_nodes(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`; without `lazy` none inside a function either."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        yield from run_time_nodes(node, lazy)


def imported(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names of all that a file imports when it runs, or (without `lazy`) when it is loaded."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["rsseg_cli", *path.relative_to(ROOT).parts[:-1]]
    package = [part for index, part in enumerate(package) if index == 0 or part != "rsseg_cli"]
    for node in run_time_nodes(tree, lazy):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = part_of(path)
    assert own in ALLOWED, f"{own}: say in this test what it may import"
    names = {name.split(".")[1] for name in imported(path) if name.startswith("rsseg_cli.")}
    modules = {name for name in names if name in ALLOWED}
    wrong = modules - ALLOWED[own] - {own}
    assert not wrong, f"{own} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "rsseg_cli" / "cli").glob("*.py")), ids=lambda path: path.name
)
def test_commands_load_nothing_heavy_at_their_top(path: Path) -> None:
    names = imported(path, lazy=False)
    assert {name.split(".")[0] for name in names} <= LIGHT | sys.stdlib_module_names
    own = {name.split(".")[1] for name in names if name.startswith("rsseg_cli.")}
    assert own <= {*BASE, "cli", "__version__"}


def test_networks_stand_alone() -> None:
    for path in (ROOT / "models").glob("*.py"):
        names = {name for name in imported(path) if name.startswith("rsseg_cli.")}
        assert all(name.split(".")[1] == "models" for name in names), f"{path.name} imports {sorted(names)}"
