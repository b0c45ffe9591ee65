"""A model's scores on labelled scenes: the maps that `predict` makes of whole images, against the truth."""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.data import LabelFormat
from rsseg_cli.errors import DataError
from rsseg_cli.evaluation.scoring import ScoreConfig, Scorer, ScoreResult
from rsseg_cli.evaluation.worst_tiles import WorstTile, WorstTiles
from rsseg_cli.pipeline import predict
from rsseg_cli.raster import classes

if TYPE_CHECKING:
    from rsseg_cli.data import LabelledData, datasets
    from rsseg_cli.weights import ModelSpec, TrainedModel

PREFIX, MAP = "rsseg-eval-", "map.tif"  # of temporary folders; of the map in one
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceDone:
    """A scene that was mapped and scored.

    Attributes:
        number, sources: it is the first, second, ... of so many.
    """

    model: str
    name: str
    number: int
    sources: int
    pixels: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a model, and pictures of its worst tiles, as the maps themselves are gone."""

    result: ScoreResult
    worst: tuple[WorstTile, ...]


Progress = Callable[[SourceDone], None]


def evaluate(
    model: TrainedModel,
    data: LabelledData,
    split: str,
    *,
    config: PredictConfig | None = None,
    refine: RefineConfig | None = None,
    score: ScoreConfig | None = None,
    pictures: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Map every scene of a part of the data as `predict` does, and score the maps.

    Classes of model and data are matched by name; scores stand in the order of the data. Of the maps one at
    a time lies on disk, in the system's folder for temporary files, with its labels; the pictures of the
    worst tiles so far are kept in memory, so that none is needed twice.

    Args:
        data: of `open_data`.
        score: classes in the order of the data, protocol, widths; `score_config(data)` by default.

    Raises:
        DataError: the part is empty, or the data have classes that the model does not know.
        SceneError, ModelError: a scene cannot be read, or does not fit the model.
    """
    sources = sources_of(data, split)
    check_classes(model.spec, data)
    scorer = Scorer(score or score_config(data))
    worst = WorstTiles(len(sources))
    with _each_note_once():
        for number, source in enumerate(sources, 1):
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
                pixels = _map_and_score(source, Path(folder), model, config, refine, scorer)
                if pictures:
                    worst.add(scorer.tiles_of(source.name))
            if progress is not None:
                done = SourceDone(
                    model=model.spec.name if refine is None else f"{model.spec.name}, refined",
                    name=source.name,
                    number=number,
                    sources=len(sources),
                    pixels=pixels,
                    seconds=time.monotonic() - start,
                )
                progress(done)
    return Evaluation(result=scorer.result(), worst=worst.shown)


def _map_and_score(
    source: datasets.Source,
    folder: Path,
    model: TrainedModel,
    config: PredictConfig | None,
    refine: RefineConfig | None,
    scorer: Scorer,
) -> int:
    """Add a scene to the scores; returns the pixels of its map, which lies in `folder`."""
    image, truth = source.rasters(folder)
    found = folder / MAP
    pixels = predict(image, found, model=model, config=config, refine=refine).pixels
    truth_format = LabelFormat(class_names=scorer.config.names)
    scorer.add(source.name, found, truth, truth_format=truth_format, image=image)
    return pixels


def score_config(
    data: LabelledData, *, erode_px: int | None = None, widths_px: Sequence[int] = ()
) -> ScoreConfig:
    """The protocol of the data, with borders eroded and bands of other widths where these are given."""
    protocol = data.protocol
    if erode_px is not None:
        protocol = dataclasses.replace(protocol, erode_px=erode_px)
    config = ScoreConfig(classes=data.classes, protocol=protocol)
    return dataclasses.replace(config, boundary_widths_px=tuple(widths_px)) if widths_px else config


def sources_of(data: LabelledData, split: str) -> tuple[datasets.Source, ...]:
    """Scenes of a part of the data; "all" is every scene."""
    sources = tuple(data.sources if split == "all" else data.split(split))
    if sources:
        return sources
    counts = Counter(source.split for source in data.sources)
    found = ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none at all"
    raise DataError(
        f"{data.name or 'data'}: no scene in the part {split!r} (scenes found: {found}). Pass another "
        "--split (all: every scene), or name scenes with --val or --test"
    )


def with_colours(data: LabelledData, spec: ModelSpec) -> LabelledData:
    """Classes in the colours of the model's maps."""
    colours = {classes.plain(item.name): item.colour for item in spec.classes}
    coloured = tuple(
        dataclasses.replace(item, colour=colours.get(classes.plain(item.name), item.colour))
        for item in data.classes
    )
    return dataclasses.replace(data, classes=coloured)


def check_classes(spec: ModelSpec, data: LabelledData) -> None:
    """Check that the model has every class of the data; warn of classes that only the model has."""
    of_model, of_data = (
        {classes.plain(name) for name in names} for names in (spec.class_names, data.class_names)
    )
    unknown = [name for name in data.class_names if classes.plain(name) not in of_model]
    unused = [name for name in spec.class_names if classes.plain(name) not in of_data]
    if unknown:
        raise DataError(
            f"{data.name or 'data'}: classes that model {spec.name!r} does not have: {', '.join(unknown)}; "
            f"classes of the model that the data do not have: {', '.join(unused) or 'none'}. Name the "
            "classes of the labels as the model does, in the order of the labels, with --classes; or use "
            "another model"
        )
    if unused:
        logger.warning(
            "model %r has classes that the data do not have: %s; what is mapped so counts as wrong",
            spec.name,
            ", ".join(unused),
        )


class _FirstOfEachKind(logging.Filter):
    """Passes the first of several warnings that differ only in names and numbers, and counts the rest.

    Drops notes below warnings, and warnings about temporary maps: `check_classes` has given those before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("rsseg_cli"):
            return True
        if "is_first" not in vars(record):  # several handlers see one record
            vars(record)["is_first"] = self._is_first(record)
        return bool(vars(record)["is_first"])

    def _is_first(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno < logging.WARNING or re.search(f"{PREFIX}[^/]*.{re.escape(MAP)}", message):
            return False
        kind = re.sub(r"\d+(\.\d+)?", "0", message.partition(": ")[2] or message)
        self._first.setdefault(kind, message)
        self._counts[kind] += 1
        return self._counts[kind] == 1

    def more(self) -> list[tuple[str, int]]:
        """Messages that passed, and how many others like them did not."""
        return [(self._first[kind], count - 1) for kind, count in self._counts.items() if count > 1]


@contextmanager
def _each_note_once() -> Iterator[None]:
    """Log only the first of several like warnings, then a count of the rest.

    Filters of a logger do not see the records of its children, those of handlers do.
    """
    once = _FirstOfEachKind()
    handlers = [*logging.getLogger("rsseg_cli").handlers, *logging.root.handlers]
    if not handlers and logging.lastResort is not None:
        handlers = [logging.lastResort]
    for handler in handlers:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(once)
    for message, count in once.more():
        logger.warning("%d more scenes like this: %s", count, message)
