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
from typing import TYPE_CHECKING, Any

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.data import DataConfig, LabelFormat, datasets
from rsseg_cli.errors import DataError
from rsseg_cli.evaluation.comparison import Comparison, compare
from rsseg_cli.evaluation.report import write_report
from rsseg_cli.evaluation.scoring import ScoreConfig, Scorer, ScoreResult
from rsseg_cli.evaluation.tiles import TileScore
from rsseg_cli.evaluation.worst_tiles import WorstTile, WorstTiles
from rsseg_cli.pipeline import predict, refinement
from rsseg_cli.raster import classes
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, read_spec

if TYPE_CHECKING:
    from rsseg_cli.data import LabelledData

PREFIX, MAP, CONFIDENCE = "rsseg-eval-", "map.tif", "confidence.tif"  # of temporary folders; files in one
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceDone:
    """A scene that was mapped and scored: the `number`th, from 1, of so many `sources`."""

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

    Classes are matched by name, in the order of the data. One map at a time lies on disk, in the folder for
    temporary files; the pictures of the worst tiles are kept in memory. `score` is `score_config(data)` by
    default.

    Raises:
        DataError: the part is empty, or the data have classes that the model does not know.
        SceneError, ModelError: a scene cannot be read, or does not fit the model.
    """
    sources = sources_of(data, split)
    check_classes(model.spec, data)
    scorer = Scorer(score or score_config(data))
    worst, labels = WorstTiles(len(sources)), datasets.single_labels(data)
    if data.sets:
        logger.warning(
            "pixels labelled %s say only which classes they may be; left out of the scores",
            ", ".join(data.sets),
        )
    with _each_note_once():
        for number, source in enumerate(sources, 1):
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
                pixels, tiles = _map_and_score(source, Path(folder), model, config, refine, scorer, labels)
                if pictures:
                    worst.add(tiles)
            if progress is not None:
                name = model.spec.name if refine is None else f"{model.spec.name}, refined"
                progress(SourceDone(
                    model=name, name=source.name, number=number, sources=len(sources), pixels=pixels,
                    seconds=time.monotonic() - start,
                ))  # fmt: skip
    result = scorer.result()
    datasets.check_coding(result.confusion.sum(1), scorer.config.names, sources)
    return Evaluation(result=result, worst=worst.shown)


def _map_and_score(
    source: datasets.Source,
    folder: Path,
    model: TrainedModel,
    config: PredictConfig | None,
    refine: RefineConfig | None,
    scorer: Scorer,
    truth_format: LabelFormat,
) -> tuple[int, list[TileScore]]:
    """Add a scene to the scores; return the pixels and tiles of its map, which lies in `folder`."""
    image, truth = source.rasters(folder)
    map_path, confidence = folder / MAP, folder / CONFIDENCE
    config = dataclasses.replace(config or PredictConfig(), **datasets.reading(source))
    pixels = predict(image, map_path, model=model, config=config, refine=refine, confidence=confidence).pixels
    tiles = scorer.add(
        source.name, map_path, truth, truth_format=truth_format, image=image, confidence=confidence
    )
    return pixels, tiles


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
    listed = ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none at all"
    raise DataError(
        f"{data.name or 'data'}: no scene in the part {split!r} (scenes found: {listed}). Pass another "
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
            spec.name, ", ".join(unused),
        )  # fmt: skip


class EvaluationRun:
    """An evaluation of one model, of two, or of refined maps against those of the model.

    `split` is train, val, test, or all for every scene; "" for test, or all for a folder without parts.
    `erode_px` is None for the data set's protocol, `boundary_widths_px` () for the default ones.
    """

    def __init__(
        self,
        models: Sequence[str],
        data: DataConfig,
        split: str = "",
        *,
        config: PredictConfig,
        refine: RefineConfig | None = None,
        erode_px: int | None = None,
        boundary_widths_px: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> None:
        has_parts = data.dataset or data.scenes or data.val or data.test
        self.split, self.config = split or ("test" if has_parts else "all"), config
        self._progress = progress
        self._entries: list[tuple[TrainedModel, RefineConfig | None]] = []
        specs = [read_spec(name) for name in models]
        if data.dataset:
            data = dataclasses.replace(data, bands=data.bands or specs[0].bands)
        elif self.split == "all":
            data = dataclasses.replace(data, val=(), test=())
        hold_out = self.split in ("train", "val")  # as training did
        opened = datasets.open_data(data, default_classes=specs[0].classes, hold_out=hold_out)
        opened, _ = datasets.with_fixed_stretch(opened, specs[0])
        self.data = with_colours(opened, specs[0])
        self._score = score_config(self.data, erode_px=erode_px, widths_px=boundary_widths_px)
        sources_of(self.data, self.split)
        for spec in specs:
            check_classes(spec, self.data)
        self._load(models, specs, refine)

    def _load(self, models: Sequence[str], specs: Sequence[ModelSpec], refine: RefineConfig | None) -> None:
        """Load the models. With `refine`, the first one's maps are refined; a single model is then compared
        with itself.
        """
        names = [spec.name for spec in specs]
        self.names = names if len(set(names)) == len(names) else list(models)
        if refine is None:
            self._entries = [(load_model(name), None) for name in models]
            return
        refine = refinement.with_refiner(specs[0], models[0], refine)
        loaded = [load_model(name) for name in models]
        self._entries = [(loaded[0], refine), (loaded[-1], None)]
        self.names = [f"{self.names[0]}, refined", self.names[-1]]

    def run(self) -> tuple[Evaluation, Comparison | None]:
        """Score each model; only the first gets pictures of its worst tiles."""
        shared: dict[str, Any] = {"config": self.config, "score": self._score, "progress": self._progress}
        first, *others = [
            evaluate(model, self.data, self.split, refine=refine, pictures=index == 0, **shared)
            for index, (model, refine) in enumerate(self._entries)
        ]
        if not others:
            return first, None
        comparison = compare(
            first.result.tiles, others[0].result.tiles, self._score.names,
            names=(self.names[0], self.names[1]), out_of_means=self._score.out_of_means,
        )  # fmt: skip
        if comparison.few_tiles:
            logger.warning(
                "%d tiles hold labels; under 20 the intervals are rough, and too narrow", comparison.tiles
            )
        return first, comparison

    def write_report(
        self, folder: Path, done: Evaluation, comparison: Comparison | None, *, overwrite: bool
    ) -> Path:
        part = "" if self.split == "all" else f", {self.split} part"
        return write_report(
            folder,
            done.result,
            title=f"{self.names[0]} on {self.data.name}{part}",
            model=self.names[0],
            settings=self._settings(),
            tiles=done.worst,
            comparison=comparison,
            overwrite=overwrite,
        )

    def _settings(self) -> dict[str, Any]:
        protocol, config, spec = self._score.protocol, self.config, self._entries[0][0].spec
        settings = {
            "against": self.names[1] if len(self.names) > 1 else "",
            "data": self.data.name,
            "part": self.split,
            "protocol": protocol.name or "every class counts",
            "not in the means": ", ".join(protocol.out_of_means),
            "labels left out near borders": f"{protocol.erode_px} px" if protocol.erode_px else "",
            "ground resolution of the network": f"{config.gsd_m or spec.gsd_m or 'as the scenes'} m",
            "tiles": f"{config.tile_size} px, {config.overlap} px shared",
            "test-time augmentation": config.tta,
            "device and arithmetic": f"{config.device}, {config.dtype}",
            "data the model was trained on": spec.data,
        }
        return {name: value for name, value in settings.items() if value}


class _FirstOfEachKind(logging.Filter):
    """Pass the first of several warnings that differ only in names and numbers, and count the rest.

    Drop notes below warnings, and warnings about temporary maps: `check_classes` has given those before.
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

    def log_counts(self) -> None:
        for kind, count in self._counts.items():
            if count > 1:
                logger.warning("%d more scenes like this: %s", count - 1, self._first[kind])


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
    once.log_counts()
