"""How a map is scored against a file of truth; light, as the command line reads its options here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.config import check_bounds, option

Bbox = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How a map is scored against a file of truth."""

    # fmt: off
    classes: str = option(
        "",
        "Class names in the order of the truth's values, or a JSON list of name, value, colour. Default: the "
        "names that the map carries.",
        metavar="A,B|FILE.json",
    )
    remap: Path | None = option(
        None,
        "Merge and rename classes of map and truth: a JSON list of name, from (the classes that it is made "
        "from), colour. Others stay.",
        metavar="CLASSES.json",
    )
    boundary_widths_px: tuple[int, ...] = option(
        (1, 3, 5, 10), "Distances from a class border at which to score boundaries, px of the map.",
        "--boundary-widths", metavar="1,3,...", example="1,3,5,10",
    )
    field: str = option(
        "",
        "Attribute of the polygons that names their class. Default: class, class_name, label or class_index.",
        "--label-field", metavar="FIELD",
    )
    vector_class: str = option("", "Class of all polygons, where no attribute names it.", metavar="NAME")
    outside: str = option(
        "",
        "Class of the ground outside all polygons, or 'unlabelled'. Default: background or other, if there "
        "is such a class.",
        metavar="NAME",
    )
    bbox: Bbox | None = option(
        None, "Score only this area, in the map's CRS.", metavar="LEFT BOTTOM RIGHT TOP"
    )
    aoi: Path | None = option(None, "Vector file; score only inside its polygons.", metavar="FILE")
    erode_px: int = option(
        0, "Ignore labels within this distance of a class border; boundary scores keep them.", "--erode",
        metavar="PX", minimum=0, maximum=64, unit="px",
    )
    out_of_means: tuple[str, ...] = option(
        (), "Classes to leave out of the means, such as clutter.", metavar="A,B"
    )
    image: str = option(
        "", "The mapped scene, for the report's pictures. Default: the one that the map names.",
        metavar="SCENE",
    )
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
