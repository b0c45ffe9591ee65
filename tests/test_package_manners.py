"""A library does not change the program that imports it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = [path for folder in ("rsseg_cli", "models", "weights") for path in (ROOT / folder).rglob("*.py")]
GLOBAL_CALLS = {  # what changes a whole process
    "addHandler", "basicConfig", "captureWarnings", "chdir", "putenv", "register", "set_gdal_config",
    "set_gdal_config_options", "set_num_threads", "setLevel", "setrlimit", "signal", "unsetenv",
}  # fmt: skip
BEFORE_AND_AFTER = """
import logging, os, re, signal, sys
from pathlib import Path
import pyogrio
from rasterio.env import get_gdal_config

text = "".join(path.read_text() for path in Path("rsseg_cli").rglob("*.py"))
options = set(re.findall('"((?:GDAL|OGR|VSI|CPL)_[A-Z_]+)"', text))
assert "GDAL_CACHEMAX" in options

def state():
    named = {name: logging.getLogger(name) for name in logging.root.manager.loggerDict if "rsseg" in name}
    return {
        "environment": dict(os.environ),
        "options of rasterio": {name: get_gdal_config(name) for name in options},
        "options of pyogrio": {name: pyogrio.get_gdal_config_option(name) for name in options},
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "own loggers": [name for name, each in named.items() if each.level or each.handlers],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.unraisablehook),
    }

before = state()
import rsseg_cli.cli, rsseg_cli.config, rsseg_cli.raster, rsseg_cli.vector, rsseg_cli.weights
for name in rsseg_cli.raster.__all__:
    getattr(rsseg_cli.raster, name, None)
for key, value in state().items():
    assert value == before[key], f"{key}: {before[key]} became {value}"
"""


def calls_at_import(nodes: list[ast.stmt]) -> Iterator[ast.expr]:
    """Functions that a module calls, and targets that it assigns, outside its own functions."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call):
            yield node.func
        if isinstance(node, ast.Assign):
            yield from node.targets
        yield from calls_at_import(list(ast.iter_child_nodes(node)))  # type: ignore[arg-type]


def test_import_changes_nothing_of_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_AND_AFTER],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_module_changes_the_process_when_it_loads() -> None:
    """Of all modules, those too that load torch; what Lightning and torch do themselves is theirs."""
    for path in FILES:
        for expression in calls_at_import(ast.parse(path.read_text(encoding="utf-8")).body):
            text = ast.unparse(expression)
            changes = text.split(".")[-1] in GLOBAL_CALLS
            assert not changes, f"{path}: {text}"
            assert not text.startswith(("os.environ", "sys.excepthook", "sys.unraisablehook")), (
                f"{path}: {text}"
            )


def test_loggers_have_the_names_of_their_modules() -> None:
    made = [
        ast.unparse(node.value)
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value)
    ]
    assert set(made) == {"logging.getLogger(__name__)"}
