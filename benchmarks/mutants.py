"""Change operators of the metrics one at a time: do the tests notice?

    python benchmarks/mutants.py --count 40
    python benchmarks/mutants.py --modules boundary --tests tests/evaluation/test_boundary.py

Each mutant is a copy of the package in which one comparison, arithmetic or boolean operator, or one small
number, is another. Prints the mutants that no test noticed; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what changed, and the source of every mutant."""
    tree = ast.parse(source)
    for index, node in enumerate(ast.walk(tree)):
        for name in ("op", "ops"):
            old = getattr(node, name, None)
            old = old[0] if isinstance(old, list) and old else old
            if type(old) not in SWAPS:
                continue
            changed = copy.deepcopy(tree)
            target = next(item for number, item in enumerate(ast.walk(changed)) if number == index)
            new = SWAPS[type(old)]()
            setattr(target, name, [new, *target.ops[1:]] if name == "ops" else new)  # type: ignore[attr-defined]
            what = f"{type(old).__name__} -> {type(new).__name__}: {ast.unparse(node)}"
            yield node.lineno, what, ast.unparse(changed)  # type: ignore[attr-defined]


def noticed(folder: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", *tests]
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", nargs="+", default=["metrics", "boundary", "intervals"])
    parser.add_argument(
        "--tests",
        nargs="+",
        default=[f"tests/evaluation/test_{name}.py" for name in ("metrics", "boundary", "intervals")],
    )
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    every = [
        (f"rsseg_cli/evaluation/{module}.py", *mutant)
        for module in args.modules
        for mutant in mutants((ROOT / f"rsseg_cli/evaluation/{module}.py").read_text(encoding="utf-8"))
    ]
    chosen = sorted(random.Random(args.seed).sample(every, min(args.count, len(every))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("rsseg_cli", "models", "weights", "tests", "pyproject.toml"):
            source = ROOT / part
            copier = shutil.copytree if source.is_dir() else shutil.copy
            copier(source, folder / part, **({"symlinks": True} if source.is_dir() else {}))
        if noticed(folder, args.tests):
            raise SystemExit("the tests fail without a mutant")
        missed = 0
        for path, line, what, changed in chosen:
            (folder / path).write_text(changed, encoding="utf-8")
            if not noticed(folder, args.tests):
                missed += 1
                print(f"{path}:{line}: {what}", flush=True)
            shutil.copy(ROOT / path, folder / path)
    print(f"{len(chosen) - missed} of {len(chosen)} mutants noticed (of {len(every)} there are)")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
