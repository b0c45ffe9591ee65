"""python tests/fuzz [--minutes 10] [--seed 0] [--target NAME ...]: mutates files until the time is over.

Each target runs in a child process of bounded memory. What ends one (a crash of a library, an error that is
none of ours, no answer for a minute) is kept in --keep and counted; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

CASE_S = 60  # without an answer, after which a case counts as hanging
MEMORY_BYTES = 6 << 30


def work(target: str, seed: int, seconds: float, folder: Path) -> None:
    """Child: run cases; before each its bytes lie in `case`, after it a character is printed."""
    from fuzz.targets import SEEDS, TARGETS, mutate

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    chance = random.Random(seed)
    seeds = SEEDS[target](folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(chance.choice(seeds), chance)
        (folder / "case").write_bytes(data)
        faulthandler.dump_traceback_later(CASE_S, exit=True)
        TARGETS[target](data, folder)
        faulthandler.cancel_dump_traceback_later()
        print(".", end="", flush=True)


def fuzz(target: str, seed: int, minutes: float, keep: Path) -> tuple[int, int]:
    """Parent: (cases, crashes) of a target; a child that ends early is followed by another."""
    end = time.monotonic() + minutes * 60
    cases = crashes = 0
    while (left := end - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, __file__, "--child", name, "--seed", str(seed), "--target", target]
            done = subprocess.run(
                [*command, "--minutes", str(left / 60)], capture_output=True, text=True, errors="replace"
            )
            cases += done.stdout.count(".")
            if done.returncode:
                crashes += 1
                keep.mkdir(parents=True, exist_ok=True)
                case = Path(name, "case")
                kept = keep / f"{target}-{seed}"
                kept.write_bytes(case.read_bytes() if case.exists() else b"")
                print(f"{target}: exit code {done.returncode}, kept as {kept}\n{done.stderr[-1500:]}")
        seed += 1
    return cases, crashes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--target", nargs="+", default=["raster", "model", "description", "journal", "manifest"]
    )
    parser.add_argument("--keep", type=Path, default=Path("fuzz-crashes"), help="folder for what crashes")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        try:
            work(given.target[0], given.seed, given.minutes * 60, given.child)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0
    shares = {
        target: 4.0 if target == "raster" else 2.0 if target == "model" else 1.0 for target in given.target
    }
    total = 0
    for target, share in shares.items():
        cases, crashes = fuzz(target, given.seed, given.minutes * share / sum(shares.values()), given.keep)
        print(f"{target}: {cases} cases, {crashes} crashes", flush=True)
        total += crashes
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
