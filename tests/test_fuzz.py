"""A few hundred damaged files of each kind; `python tests/fuzz --minutes 10` tries many more."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz.targets import SEEDS, TARGETS, mutate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {"raster": 60, "model": 12, "description": 150, "journal": 60, "manifest": 100}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return {target: make(tmp_path_factory.mktemp(target)) for target, make in SEEDS.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_good_files_are_read(target: str, seeds: dict[str, list[bytes]], tmp_path: Path) -> None:
    for data in seeds[target]:
        TARGETS[target](data, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_refused_or_sound(
    target: str, seeds: dict[str, list[bytes]], tmp_path: Path
) -> None:
    @settings(
        max_examples=EXAMPLES[target], derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, 2**32))
    def try_one(number: int) -> None:
        chance = random.Random(number)
        TARGETS[target](mutate(chance.choice(seeds[target]), chance), tmp_path)

    try_one()


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_of_any_kind_are_refused_or_sound(target: str, tmp_path: Path) -> None:
    @settings(
        max_examples=30, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(max_size=300))
    def try_one(data: bytes) -> None:
        TARGETS[target](data, tmp_path)

    try_one()


@pytest.mark.slow
def test_fuzzing_for_ten_minutes_finds_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tests" / "fuzz"),
        "--minutes",
        "10",
        "--keep",
        str(tmp_path / "kept"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
