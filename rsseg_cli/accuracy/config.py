"""Settings of samples and assessments; light, as the command line reads its options here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rsseg_cli.config import check_bounds, option
from rsseg_cli.errors import UsageError

Design = Literal["stratified", "random", "systematic", "cluster"]
Allocation = Literal["proportional", "equal", "neyman"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How points are drawn from a map."""

    # fmt: off
    points: int = option(
        0, "Number of points. Default: what --standard-error takes.", "--points", "-n", metavar="N",
        minimum=2, maximum=1_000_000, unset=0,
    )
    design: Design = option(
        "stratified",
        "stratified: a number of points in each mapped class; random: anywhere; systematic: on a grid; "
        "cluster: squares of 3 x 3 points, near one another to visit.",
        "--by",
    )
    allocation: Allocation = option(
        "proportional",
        "How strata share the points: by area, equally, or by area and expected accuracy (neyman).",
    )
    min_per_stratum: int = option(
        50, "Points that a small class gets at least.", "--min-per-class", metavar="N", minimum=2,
        maximum=100_000,
    )
    expected_accuracy: tuple[str, ...] = option(
        ("0.8",), "User's accuracy that you expect, of all classes or by class; for neyman and "
        "--standard-error.", metavar="P|NAME=P,...",
    )
    standard_error: float = option(
        0.02, "Standard error of the overall accuracy that sets the number of points.", above=0, below=0.5,
    )
    boundary_px: int = option(
        0, "Make strata of their own of the pixels within this distance of a boundary between classes; "
        "stratified only.", metavar="PX", minimum=0, maximum=64, unit="px",
    )
    cluster_px: int = option(
        150, "Side of a cluster's square.", "--cluster-size", metavar="PX", minimum=3, maximum=100_000,
        unit="px",
    )
    seed: int = option(0, "Seed of the draw.", metavar="S", minimum=0, below=2**63)
    chip_px: int = option(
        128, "Side of the pictures of --chips, px of the scene.", "--chip-size", metavar="PX", minimum=16,
        maximum=1024, unit="px",
    )
    overwrite: bool = option(False, "Replace existing outputs.")
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
        self.expected()
        if self.boundary_px and self.design != "stratified":
            raise UsageError(f"--boundary-px {self.boundary_px}: is for --by stratified")

    def expected(self) -> tuple[float, dict[str, float]]:
        """Return the expected accuracy of classes that are not named, and of those that are."""
        general, named = 0.8, {}
        for text in self.expected_accuracy:
            name, sign, number = text.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if not 0 < value < 1:
                raise UsageError(f"--expected-accuracy {text}: needs a number between 0 and 1, or NAME=P")
            if sign:
                named[name.strip().casefold()] = value
            else:
                general = value
        return general, named


@dataclass(frozen=True, kw_only=True)
class AssessConfig:
    """How labelled points are turned into accuracies and areas."""

    # fmt: off
    truth: str = option(
        "class", "Field with the true class, as a name or number of the map.", metavar="FIELD"
    )
    level: float = option(
        0.95, "Confidence level of the intervals.", "--confidence-level", above=0, below=1, metavar="P"
    )
    overwrite: bool = option(False, "Replace existing outputs.")
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class ChangeConfig:
    """What counts as change between two maps."""

    # fmt: off
    tolerance_px: int = option(
        0, "Do not count change that a shift of the maps against each other by this much explains.",
        "--tolerance", metavar="PX", minimum=0, maximum=64, unit="px",
    )
    min_width_m: float = option(
        0.0, "Do not count change narrower than this, such as slivers along boundaries.", "--min-width",
        unit="m", minimum=0, below=1e6,
    )
    min_confidence: float = option(
        0.0, "Call a pixel unsure where either map's confidence is below this, 0 to 1; needs both "
        "--confidence options.", metavar="P", minimum=0, maximum=1,
    )
    overwrite: bool = option(False, "Replace existing outputs.")
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class SuggestConfig:
    """How many squares to suggest, and how large."""

    # fmt: off
    number: int = option(20, "Squares.", "--number", "-n", metavar="N", minimum=1, maximum=10_000)
    size_m: float = option(
        0.0, "Side of a square. Default: 12 px of the map, 5 m at least.", "--size", unit="m", above=0,
        below=1e6, unset=0.0,
    )
    overwrite: bool = option(False, "Replace existing outputs.")
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
