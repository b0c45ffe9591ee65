"""Score one map against one file of truth: which classes there are, and which values mean them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rsseg_cli.data import LabelFormat, datasets
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.evaluation.config import PairConfig
from rsseg_cli.evaluation.scoring import ScoreConfig, Scorer, ScoreResult
from rsseg_cli.raster import Area, Grid, SceneInfo, classes
from rsseg_cli.weights import ClassSpec

logger = logging.getLogger(__name__)


def score_pair(
    predicted: str, truth: str, config: PairConfig, progress: Callable[[int, int], None] | None = None
) -> ScoreResult:
    """Score the class raster `predicted` against labels or polygons.

    Classes of map and truth are matched by name if both have names.
    """
    grid = SceneInfo.of(predicted).grid
    names = {
        value: name
        for value, name in classes.read_names(predicted).items()
        if not classes.is_unlabelled(name)
    }
    given = datasets.read_classes(config.classes).without_sets(truth) if config.classes else None
    table = given or _table_of_map(predicted, names)
    if config.classes and names:
        _check_names(predicted, list(names.values()), [item.name for item in table.classes])
    by_value = bool(config.classes and table.values)
    table, aliases = _remapped(table, config, predicted)
    score = ScoreConfig(
        classes=table.classes,
        aliases=aliases,
        protocol=datasets.ScoringProtocol(out_of_means=config.out_of_means, erode_px=config.erode_px),
        boundary_widths_px=config.boundary_widths_px,
    )
    format = _truth_format(truth, table, config, aliases, by_value=by_value)
    _check_crs(grid, truth)
    window, area = _part(grid, config)
    scorer = Scorer(score, progress)
    image = config.image or _scene_of(predicted)
    scorer.add(
        Path(predicted).stem, predicted, truth, truth_format=format, image=image, window=window, area=area
    )
    result = scorer.result()
    pair = datasets.LabelledScene(Path(predicted), Path(truth), "test", format=format)
    datasets.check_coding(result.confusion.sum(1), score.names, [pair])
    _warn_of_holes(predicted, result)
    return result


def _table_of_map(path: str, names: dict[int, str]) -> datasets.ClassTable:
    """Classes that a map names; truth without names has the map's values."""
    if not names:
        raise DataError(
            f"{path}: names no classes (tags CLASS_0, CLASS_1, ..., or category names). Pass --classes a,b,c "
            "in the order of its values"
        )
    colours = classes.read_colours(path)
    specs = ClassSpec.from_names(
        [ClassSpec(name, colours[value]) if value in colours else name for value, name in names.items()]
    )
    values = {value: index for index, value in enumerate(names)}
    plain_numbers = list(names) == list(range(len(names)))
    return datasets.ClassTable(
        specs,
        colours={item.colour: index for index, item in enumerate(specs)},
        values=None if plain_numbers else values,
    )


def _remapped(
    table: datasets.ClassTable, config: PairConfig, predicted: str
) -> tuple[datasets.ClassTable, dict[str, int]]:
    """Classes after `--remap`, and what further names in map and truth count as."""
    if config.remap is None:
        return table, {}
    names = [item.name for item in table.classes]
    new = classes.remapped(config.remap, names, predicted)
    made = zip(new.names, new.colours, new.groups, strict=True)
    specs = tuple(ClassSpec(name, colour or table.classes[group[0]].colour) for name, colour, group in made)
    number = {**new.position, classes.IGNORE: classes.IGNORE}
    values = table.values or {old: old for old in range(len(names))}
    coded = datasets.ClassTable(
        specs,
        colours=table.colours and {colour: number[old] for colour, old in table.colours.items()},
        values={value: number[old] for value, old in values.items()},
    )
    kept = {classes.plain(names[old]): position for old, position in new.position.items()}
    return coded, {**new.aliases, **kept}


def _check_names(path: str, names: list[str], wanted: Sequence[str]) -> None:
    """Every class of `--classes` is one of the map's."""
    known = {classes.plain(name) for name in names}
    missing = [name for name in wanted if classes.plain(name) not in known]
    if missing:
        raise DataError(
            f"{path}: its classes are {', '.join(names)}; --classes names {', '.join(missing)}. Name them "
            "as the map does, or leave --classes out"
        )


def _truth_format(
    truth: str,
    table: datasets.ClassTable,
    config: PairConfig,
    aliases: Mapping[str, int],
    *,
    by_value: bool,
) -> LabelFormat:
    """What the truth's values mean: by name where it has names, else as the classes say."""
    names = tuple(item.name for item in table.classes)
    if datasets.is_vector(Path(truth)):
        return LabelFormat(
            class_names=names, values=table.values, aliases=aliases, field=config.field,
            vector_class=config.vector_class, outside=config.outside,
        )  # fmt: skip
    options = {
        "--label-field": config.field, "--vector-class": config.vector_class, "--outside": config.outside
    }  # fmt: skip
    given = [option for option, value in options.items() if value]
    if given:
        raise UsageError(f"{' and '.join(given)}: for truth of polygons; {truth} is a raster")
    named = {} if by_value else classes.read_names(truth)
    if named:
        return LabelFormat(class_names=names, values=_values_by_name(truth, named, names, aliases))
    colour_mask = len(SceneInfo.of(truth).colour_bands) >= 3
    return LabelFormat(class_names=names, values=table.values, colours=table.colours if colour_mask else None)


def _values_by_name(
    truth: str, named: dict[int, str], names: tuple[str, ...], aliases: Mapping[str, int]
) -> dict[int, int]:
    """Class number by the truth's values."""
    known = {classes.plain(name): index for index, name in enumerate(names)} | dict(aliases)
    unknown = [
        f"{name} ({value})"
        for value, name in named.items()
        if classes.plain(name) not in known and not classes.is_unlabelled(name)
    ]
    if unknown:
        raise DataError(
            f"{truth}: {', '.join(unknown)} is no class; needs {', '.join(names)}. Pass --classes FILE.json, "
            'a list of {"name", "value"} that gives the values in the truth for each class'
        )
    labelled = {known.get(classes.plain(name)) for name in named.values()}
    lacking = [name for index, name in enumerate(names) if index not in labelled]
    if lacking:
        logger.warning("%s: has no %s; what is mapped so counts as wrong", truth, ", ".join(lacking))
    values = {value: known.get(classes.plain(name), classes.IGNORE) for value, name in named.items()}
    return {classes.IGNORE: classes.IGNORE, **values}


def _check_crs(grid: Grid, truth: str) -> None:
    """Check that the truth can be transformed to the map's CRS, if both have one."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    text = datasets.vector_crs(truth) if datasets.is_vector(Path(truth)) else SceneInfo.of(truth).grid.wkt
    if not text or not grid.wkt:
        return
    try:
        Transformer.from_crs(text, grid.wkt, always_xy=True)
    except ProjError as err:
        names = [CRS.from_user_input(crs).name for crs in (text, grid.wkt)]
        raise DataError(
            f"{truth}: its CRS ({names[0]}) cannot be transformed to that of the map ({names[1]}). If it is "
            "wrong, set it with gdal_edit -a_srs or ogr2ogr -a_srs"
        ) from err


def _part(grid: Grid, config: PairConfig) -> tuple[tuple[int, int, int, int], Area | None]:
    """The window of the map that is looked at, and the area in it."""
    top, left, bottom, right = 0, 0, grid.height, grid.width
    area = Area.read(config.aoi, grid) if config.aoi is not None else None
    windows = [grid.window_of_bbox(config.bbox)] if config.bbox is not None else []
    windows += [area.window(grid)] if area is not None else []
    for row, col, height, width in windows:
        top, left = max(top, row), max(left, col)
        bottom, right = min(bottom, row + height), min(right, col + width)
    if top >= bottom or left >= right:
        raise UsageError(f"--bbox and --aoi {config.aoi}: have no pixel of the map in common")
    return (top, left, bottom - top, right - left), area


def _scene_of(predicted: str) -> str | None:
    scene = classes.read_scene_name(predicted)
    paths = [Path(scene), Path(predicted).parent / Path(scene).name] if scene else []
    return next((str(path) for path in paths if path.is_file()), None)


def _warn_of_holes(predicted: str, result: ScoreResult) -> None:
    pixels, outside = result.scores["pixels"], result.scores["pixels_outside_classes"]
    if outside:
        logger.warning(
            "%s: %d of %d labelled pixels (%.2g%%) are without data or of no class in the map; they count as "
            "wrong (--aoi or --bbox can leave them out)", predicted, outside, pixels, 100 * outside / pixels,
        )  # fmt: skip
