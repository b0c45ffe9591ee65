"""Stored expectations, and comparisons with them that tolerate another processor.

A class map may differ in 0.05 % of its pixels, a probability by a few units. Numbers in texts and in JSON
may differ by about one percent where they have a decimal point. All else is equal, or the test fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parent
EXPECTED = FOLDER / "expected"
MODEL = FOLDER / "small.safetensors"
REFINER = FOLDER / "small-refiner.safetensors"

LABEL_SHARE = 0.9995  # of a map's pixels that must be equal
SAMPLE_STEP = 16  # of the pixels that are kept of a confidence raster
SAMPLE_UNITS = 3  # of 254, that a sample may differ by
SAMPLE_SHARE = 0.995  # of the samples that may not differ by more
EXACT_RELATIVE = 1e-6  # of sums that are made in another order
RELATIVE = 0.01  # of numbers with a decimal point
COUNT_RELATIVE = 0.005  # of numbers of pixels
ABSOLUTE = 0.002  # of such numbers, as shares and scores from 0 to 1
ABSOLUTE_BY_NAME = {"pixels": 50, "area_m2": 20.0}  # of rare classes
PERCENT = 0.05  # of numbers in texts
EXACT_COUNT = 1000  # smaller whole numbers must be equal
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*\.\d+(?!\w|\.\d)")


class Golden:
    """Expectations by name.

    Args:
        update: write what is found in place of comparing it.
    """

    def __init__(self, *, update: bool) -> None:
        self.update = update

    def check_labels(self, name: str, labels: NDArray[np.uint8]) -> None:
        """Class indices (row, col) against a stored picture."""
        path = EXPECTED / "maps" / f"{name}.png"
        if self.update:
            _write_labels(path, labels)
            return
        expected = read_labels(path)
        assert labels.shape == expected.shape, name
        equal = float((labels == expected).mean())
        assert equal >= LABEL_SHARE, f"{name}: {equal:.4%} of the pixels have the stored class"

    def check_samples(self, name: str, values: NDArray[np.uint8]) -> None:
        """A uint8 raster (band, row, col) against its stored samples, every SAMPLE_STEP-th row and column."""
        path = EXPECTED / "maps" / f"{name}.npz"
        samples = values[:, ::SAMPLE_STEP, ::SAMPLE_STEP]
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, shape=np.array(values.shape), samples=samples)
            return
        with np.load(path) as stored:
            assert values.shape == tuple(stored["shape"]), name
            expected = stored["samples"]
        assert ((samples == 255) == (expected == 255)).all(), f"{name}: nodata differs"
        near = np.abs(samples.astype(int) - expected) <= SAMPLE_UNITS
        assert near.mean() >= SAMPLE_SHARE, (
            f"{name}: {near.mean():.2%} of the samples are near the stored ones"
        )

    def check_json(self, name: str, found: Any, *, exact: bool = False) -> None:
        """Values in types that JSON has; with `exact` counts must be equal, others within 1e-6."""
        path = EXPECTED / f"{name}.json"
        found = json.loads(json.dumps(found))
        if self.update:
            _write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            return
        differences = list(_differences(found, json.loads(path.read_text("utf-8")), name, exact))
        assert not differences, "\n".join(differences[:20])

    def check_text(self, name: str, found: str) -> None:
        """A text, whose numbers with a decimal point may differ a little."""
        path = EXPECTED / f"{name}.txt"
        if self.update:
            _write_text(path, found)
            return
        expected = path.read_text("utf-8")
        ours, theirs = (NUMBER.findall(text) for text in (found, expected))
        if NUMBER.sub("#", found) != NUMBER.sub("#", expected):
            assert found == expected
        pairs = zip(ours, theirs, strict=True)
        far = [
            (a, b)
            for a, b in pairs
            if not _is_near(_number(a), _number(b), RELATIVE, max(PERCENT, _last_digit(b)))
        ]
        assert not far, f"{name}: {far}"

    def check_names(self, kind: str, names: list[str]) -> None:
        """The stored files of a kind are these; others are removed in an update."""
        stored = {path.stem: path for path in (EXPECTED / kind).iterdir()}
        if self.update:
            for name in stored.keys() - set(names):
                stored[name].unlink()
            return
        assert sorted(stored) == sorted(names)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Class indices (row, col) of a stored picture; 15 stands for 255."""
    with Image.open(path) as image:
        labels = np.asarray(image).copy()
    labels[labels == 15] = 255
    return labels


def _write_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    """Four bits a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.where(labels == 255, 15, labels).astype(np.uint8)
    assert small.max() <= 15
    image = Image.fromarray(small).convert("P")
    image.putdata(small.ravel())
    palette = [(214, 69, 65), (222, 203, 164), (120, 120, 128), (76, 145, 65), (58, 124, 190)]
    image.putpalette([part for colour in palette + [(0, 0, 0)] * 11 for part in colour])
    image.save(path, bits=4, optimize=True)
    np.testing.assert_array_equal(read_labels(path), labels)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _differences(found: Any, expected: Any, where: str, exact: bool) -> Iterator[str]:
    """Lines that say what differs."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected.keys() | found.keys():
            if key not in found or key not in expected:
                yield f"{where}.{key}: {'missing' if key not in found else 'new'}"
            else:
                yield from _differences(found[key], expected[key], f"{where}.{key}", exact)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            yield f"{where}: {len(found)} items, expected {len(expected)}"
        for index, pair in enumerate(zip(found, expected, strict=False)):
            yield from _differences(*pair, f"{where}[{index}]", exact)
    elif not _is_same(found, expected, where.rpartition(".")[2], exact):
        yield f"{where}: {found!r}, expected {expected!r}"


def _is_same(found: Any, expected: Any, name: str, exact: bool) -> bool:
    if type(found) is not type(expected):
        return False
    if exact and isinstance(found, float):
        return _is_near(found, expected, EXACT_RELATIVE, EXACT_RELATIVE)
    if isinstance(found, float):
        return _is_near(found, expected, RELATIVE, ABSOLUTE_BY_NAME.get(name, ABSOLUTE))
    if type(found) is int and not exact and (expected > EXACT_COUNT or name in ABSOLUTE_BY_NAME):
        return _is_near(found, expected, COUNT_RELATIVE, ABSOLUTE_BY_NAME.get(name, 0))
    return bool(found == expected)


def _is_near(found: float, expected: float, relative: float, absolute: float) -> bool:
    return abs(found - expected) <= max(relative * abs(expected), absolute)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _last_digit(text: str) -> float:
    """What one unit of the last digit is worth."""
    return 1.01 * 10.0 ** -len(text.partition(".")[2])
