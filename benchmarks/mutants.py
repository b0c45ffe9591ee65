"""Change operators of the metrics one at a time: do the tests notice?

    python benchmarks/mutants.py
    python benchmarks/mutants.py evaluation/boundary --count 40

In each mutant one comparison, arithmetic or boolean operator is another. It runs the tests of its module,
tests/evaluation/test_boundary.py of evaluation/boundary, on a copy of the package. Prints the mutants that no
test noticed; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["evaluation/metrics", "evaluation/boundary", "evaluation/intervals", "accuracy/estimate"]
LOADED = ("hypothesis", "pytest", "rasterio", "scipy.ndimage", "torch", "sklearn.metrics", "torchmetrics")
TIMEOUT_S = 300
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what changed, and the source of every mutant; annotations are not evaluated, and stay."""
    tree = ast.parse(source)
    annotations = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    never_run = {id(node) for item in annotations if item for node in ast.walk(item)}
    for index, node in enumerate(ast.walk(tree)):
        operators = getattr(node, "ops", [getattr(node, "op", None)])
        for place, old in enumerate(operators):
            if type(old) not in SWAPS or id(node) in never_run:
                continue
            changed = copy.deepcopy(tree)
            target = next(item for number, item in enumerate(ast.walk(changed)) if number == index)
            new = SWAPS[type(old)]()
            if isinstance(target, ast.Compare):
                target.ops[place] = new  # type: ignore[call-overload]
            else:
                target.op = new  # type: ignore[attr-defined]
            what = f"{type(old).__name__} -> {type(new).__name__}: {ast.unparse(node)}"
            yield node.lineno, what, ast.unparse(changed)  # type: ignore[attr-defined]


def run_tests(folder: Path, test: str) -> None:
    """Exit with pytest's status, having imported the package from `folder`."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os._exit(importlib.import_module("pytest").main(["-x", "-q", test]))


def noticed(folder: Path, test: str) -> bool:
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, test))
    process.start()
    process.join(TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode != 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--count", type=int, help="of mutants drawn; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in LOADED:  # once, not in each mutant's process
        importlib.import_module(name)
    paths = [Path(f"rsseg_cli/{module}.py") for module in args.modules]
    every = [(path, *mutant) for path in paths for mutant in mutants((ROOT / path).read_text("utf-8"))]
    chosen = sorted(random.Random(args.seed).sample(every, min(args.count or len(every), len(every))))
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("rsseg_cli", "models", "weights", "tests"):
            shutil.copytree(ROOT / part, folder / part, symlinks=True)
        shutil.copy(ROOT / "pyproject.toml", folder)
        tests = {path: f"tests/{path.parent.name}/test_{path.name}" for path in paths}
        for test in tests.values():
            if noticed(folder, test):
                raise SystemExit(f"{test} fails without a mutant")
        for path, line, what, changed in chosen:
            (folder / path).write_text(changed, "utf-8")
            if not noticed(folder, tests[path]):
                missed += 1
                print(f"{path}:{line}: {what}", flush=True)
            shutil.copy(ROOT / path, folder / path)
    print(f"{len(chosen) - missed} of {len(chosen)} mutants noticed (of {len(every)} there are)")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
