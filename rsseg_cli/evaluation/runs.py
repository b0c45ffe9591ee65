"""Evaluations from the names of models and the settings of data to scores, a comparison and a report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.data import DataConfig, datasets
from rsseg_cli.evaluation.comparison import Comparison, compare
from rsseg_cli.evaluation.evaluate_model import (
    Evaluation,
    Progress,
    check_classes,
    evaluate,
    score_config,
    sources_of,
    with_colours,
)
from rsseg_cli.evaluation.report import write_report
from rsseg_cli.pipeline import refinement
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, read_spec

logger = logging.getLogger(__name__)


class EvaluationRun:
    """An evaluation of one model, of two, or of refined maps against those of the model.

    Args:
        split: train, val, test, or all for every scene; "" for test, or all for a folder without parts.
        erode_px: None for the data set's protocol.
        boundary_widths_px: () for the default ones.
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
        if self.split in ("test", "all"):  # its notes on the validation part do not matter here
            logging.getLogger("rsseg_cli.data.split").setLevel(logging.ERROR)
        chosen = for_split(data, self.split, specs[0].bands)
        opened = datasets.open_data(chosen, default_classes=specs[0].classes)
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
        first, *others = [
            evaluate(
                model,
                self.data,
                self.split,
                config=self.config,
                refine=refine,
                score=self._score,
                pictures=index == 0,
                progress=self._progress,
            )
            for index, (model, refine) in enumerate(self._entries)
        ]
        if not others:
            return first, None
        comparison = compare(
            first.result.tiles,
            others[0].result.tiles,
            self._score.names,
            names=(self.names[0], self.names[1]),
            out_of_means=self._score.protocol.out_of_means,
        )
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
            classes=self.data.classes,
            model=self.names[0],
            settings=self._settings(),
            tiles=done.worst,
            comparison=comparison,
            out_of_means=self._score.protocol.out_of_means,
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


def for_split(config: DataConfig, split: str, bands: tuple[str, ...]) -> DataConfig:
    """Take the model's bands, and leave a folder whole where no validation part is needed."""
    if config.dataset:
        return replace(config, bands=config.bands or bands)
    if split == "all" and config.folders:
        return replace(config, test=("*",), val=())
    if split == "test" and config.folders and not config.val:
        return replace(config, val=("*",))
    return config
