"""The layout: packages on floors, imports that run downward and through faces alone, light start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    {"_lazy", "_version", "errors", "models"},
    {"files", "system"},
    {"config", "raster", "weights"},
    {"data", "inference", "vector"},
    {"pipeline"},
    {"batch", "evaluation"},
    {"accuracy", "training"},
    {"__init__", "cli"},
    {"__main__"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PACKAGES = (
    "accuracy", "batch", "cli", "data", "evaluation", "inference", "models", "pipeline", "raster", "training",
    "vector", "weights",
)  # fmt: skip
# Libraries that only these packages load.
ONLY_IN = {
    "torch": {"models", "weights", "inference", "pipeline", "batch", "training", "evaluation"},
    "lightning": {"training"},
    "ray": {"batch"},
    "pyogrio": {"raster", "vector", "data"},
}
MAX_LINES = 400
MAX_ROOT_FILES = 8
MAX_NAMES = 8


class Import(NamedTuple):
    """One imported name: `from module import name`, or `import module` with an empty name."""

    module: str
    name: str
    lazy: bool


def source_files() -> list[Path]:
    """Files of the package, each once: its `models` and `weights` are links to the top of the repository."""
    linked = ("models", "weights")
    own = (
        path for path in (ROOT / "rsseg_cli").rglob("*.py") if path.relative_to(ROOT).parts[1] not in linked
    )
    return sorted([*own, *(path for folder in linked for path in (ROOT / folder).rglob("*.py"))])


def package_of(path: Path) -> str:
    """The package that a file belongs to, or its own name where it lies directly in `rsseg_cli/`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] != "rsseg_cli" else parts[1]


def imports_of(path: Path) -> Iterator[Import]:
    """All imports, those under `if TYPE_CHECKING` too; lazy ones stand inside a function."""
    folder = ["rsseg_cli", *path.relative_to(ROOT).parent.parts]
    folder = folder[1:] if folder[1:2] == ["rsseg_cli"] else folder

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, "", lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                start = folder[: len(folder) - child.level + 1] if child.level else []
                module = ".".join([*start, *filter(None, [child.module])])
                yield from (Import(module, alias.name, lazy) for alias in child.names)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, lazy or inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def project_imports(path: Path) -> Iterator[tuple[str, str, str]]:
    """(package, submodule, name) of what a file imports from this project."""
    for item in imports_of(path):
        parts = item.module.split(".")
        if parts[0] != "rsseg_cli":
            continue
        if len(parts) == 1:
            yield item.name if item.name in FLOOR else "__init__", "", "" if item.name in FLOOR else item.name
        else:
            yield parts[1], ".".join(parts[2:]), item.name


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward_and_through_faces(path: Path) -> None:
    own = package_of(path)
    for package, submodule, name in project_imports(path):
        if package == own:
            continue
        said = f"{path.relative_to(ROOT)} imports {package}.{submodule}.{name}"
        assert FLOOR[package] < FLOOR[own], f"{said}: not on a lower floor"
        if package in PACKAGES:
            assert not submodule, f"{said}: not through the package's face"
            if name:
                assert name in import_module(f"rsseg_cli.{package}").__all__, f"{said}: not in its __all__"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_have_their_packages(path: Path) -> None:
    used = {item.module.split(".")[0] for item in imports_of(path)}
    for library, packages in ONLY_IN.items():
        assert library not in used or package_of(path) in packages, f"{path.relative_to(ROOT)}: {library}"


def test_networks_import_nothing_of_the_project() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert {package for package, _, _ in project_imports(path)} <= {"models"}, path.name


@pytest.mark.parametrize("name", PACKAGES)
def test_a_face_is_short(name: str) -> None:
    face = import_module(f"rsseg_cli.{name}")
    if name == "cli":
        return  # nobody imports it but __main__
    assert 2 <= len(face.__all__) <= MAX_NAMES
    assert list(face.__all__) == sorted(face.__all__)
    for public in face.__all__:
        assert getattr(import_module(face.__name__), public, None) or import_module(
            f"{face.__name__}.{public}"
        )
    assert len(Path(str(face.__file__)).read_text(encoding="utf-8").splitlines()) <= 40


def test_files_are_short_and_few_lie_at_the_top() -> None:
    for path in source_files():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path
    assert len(list((ROOT / "rsseg_cli").glob("*.py"))) <= MAX_ROOT_FILES


@pytest.mark.parametrize(
    "path", sorted((ROOT / "rsseg_cli" / "cli").glob("*.py")), ids=lambda path: path.name
)
def test_commands_load_nothing_heavy_at_their_top(path: Path) -> None:
    heavy = {item.module for item in imports_of(path) if not item.lazy}
    tops = {module.split(".")[0] for module in heavy} - {"rsseg_cli", "typer"}
    assert tops <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import rsseg_cli", ("numpy", "torch", "rasterio", "geopandas")),
        ("import rsseg_cli.raster, rsseg_cli.vector, rsseg_cli.data", ("torch", "geopandas", "ray")),
        ("import rsseg_cli.pipeline, rsseg_cli.batch, rsseg_cli.inference", ("torch", "geopandas", "ray")),
        (
            "import rsseg_cli.evaluation, rsseg_cli.training, rsseg_cli.weights",
            ("torch", "lightning", "timm"),
        ),
        ("import rsseg_cli.cli", ("torch", "rasterio", "geopandas")),
    ],
)
def test_faces_load_light(code: str, absent: tuple[str, ...]) -> None:
    script = f"{code}\nimport sys\nprint(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""
