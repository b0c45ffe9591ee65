"""Third-party modules: what is imported is declared, what is declared is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
USED_BY_LIBRARIES = {"tensorboardx"}  # Lightning's TensorBoardLogger writes by it
USED_AS_COMMANDS = {"build", "mypy", "pytest-xdist", "ruff", "setuptools"}
OF_QGIS = {"processing", "qgis"}  # its own Python has them


def names(items: Iterable[str]) -> set[str]:
    return {re.split(r"[>=\[]", item)[0] for item in items}


def modules(path: Path) -> Iterator[str]:
    """Modules that a file imports, or skips its tests without."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield from (str(item.value) for item in node.args[:1] if isinstance(item, ast.Constant))


def imported(*folders: str) -> set[str]:
    """Distributions of the third-party modules that are imported in the folders."""
    files = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    own = {"rsseg_cli", "fuzz", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    tops = {module.partition(".")[0] for path in files for module in modules(path)}
    tops -= own | set(sys.stdlib_module_names) | OF_QGIS
    distributions = packages_distributions()
    missing = tops - set(distributions)
    assert not missing, f"not installed: {missing}"
    # the distribution of the module's name, where plug-ins add to the module
    found = ({top} if top in distributions[top] else distributions[top] for top in tops)
    return {name.lower().replace("_", "-") for items in found for name in items}


def test_package_imports_what_it_declares() -> None:
    needed = names(PROJECT["dependencies"])
    optional = names(EXTRAS["ray"] + EXTRAS["onnxruntime"])
    assert imported("rsseg_cli", "models", "weights") == (needed | optional) - USED_BY_LIBRARIES


def test_tests_import_what_they_declare() -> None:
    needed = names(PROJECT["dependencies"])
    used = imported("tests")
    assert used <= needed | names(EXTRAS["dev"])
    assert names(EXTRAS["dev"]) - USED_AS_COMMANDS <= used
