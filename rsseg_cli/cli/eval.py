"""`rsseg eval`: score a model on labelled scenes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.tables import comparison_table, score_table
from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.data import DataConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.evaluation import PairConfig

if TYPE_CHECKING:
    from rsseg_cli.data import LabelledData
    from rsseg_cli.evaluation import comparison as comparisons
    from rsseg_cli.evaluation import evaluate_model
    from rsseg_cli.weights import TrainedModel

logger = logging.getLogger(__name__)
DATA = (
    "dataset root domains folders images masks scenes val test val_share classes field vector_class outside"
)
SCORING_HELP = {
    "boundary_widths_px": "Distances from a class border at which to score boundaries, px of the scenes.",
    "erode_px": "Ignore labels within this distance of a class border, 3 for ISPRS' eroded scores; boundary "
    "scores keep them. Default: the published protocol of the data set.",
}


@from_settings
def eval_command(
    model: opt.Model,
    *,
    data: Annotated[DataConfig, Options(DATA)],
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(
            help="Part of the data to score; all is every scene, whatever its part. Default: test; all for a "
            "folder without --val and --test.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Seed given to train: decides which scenes it held out for validation; also seeds the "
            "refiner's noise.",
        ),
    ] = 0,
    config: Annotated[PredictConfig, Options("tta tile_size overlap gsd_m device dtype")],
    scoring: Annotated[
        dict[str, Any], Options("boundary_widths_px erode_px", help=SCORING_HELP, of=(PairConfig(),))
    ],
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="A second model for the same scenes: differences with 95% intervals, from 2000 resamples of "
            "the tiles.",
        ),
    ] = "",
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Score refined maps, against the model's own (or those of --against)."),
    ] = False,
    refinement: Annotated[RefineConfig, Options("refiner steps band_m ensemble")],
    report: opt.ReportFolder = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Score a model on labelled scenes: each is mapped whole, as by `rsseg predict`, and the map scored.

    Classes are the model's unless --classes names those of the labels; they are matched by name. Unlabelled
    pixels never count; pixels mapped as a class that the data do not have, or not mapped, count as wrong.
    Published data sets are scored by their published protocol.

    With --json: as `rsseg score`, and with --against or --refine the comparison under `against`.

    Example: rsseg eval --model landcover --data sheets --test 'north_*' --report scores
    """
    if not refine and refinement != RefineConfig():
        raise UsageError("options about refining need --refine")
    has_parts = data.dataset or data.scenes or data.val or data.test
    split = split or ("test" if has_parts else "all")
    run = _Run(quiet=quiet, split=split, config=config, scoring=scoring)
    if report is not None:
        from rsseg_cli.evaluation import report as reports

        reports.check_report_folder(report, overwrite=overwrite)
    refinement = replace(refinement, seed=seed, tile_size=config.tile_size)
    run.start(
        replace(data, seed=seed), [model, against] if against else [model], refinement if refine else None
    )
    done, *others = run.results()
    comparison = run.compare(done, others[0]) if others else None
    if report is not None:
        page = run.write_report(report, done, comparison, overwrite=overwrite)
        typer.echo(f"rsseg: report: {page}", err=True)
    scores = done.result.scores
    if as_json:
        opt.echo_json({**scores, **({"against": comparison.as_dict()} if comparison else {})})
        return
    typer.echo(score_table(scores))
    typer.echo(f"{scores['pixels'] / 1e6:.2f} Mpx scored, {scores['unlabelled_share']:.1%} unlabelled")
    if comparison:
        typer.echo(f"\n{comparison_table(comparison.as_dict())}")


class _Run:
    """One evaluation of one or two models: what they share."""

    def __init__(self, *, quiet: bool, split: str, config: PredictConfig, scoring: dict[str, Any]) -> None:
        self.quiet, self.split, self.config, self._scoring = quiet, split, config, scoring
        self.entries: list[tuple[TrainedModel, RefineConfig | None]] = []
        self.names: list[str] = []
        self.data: LabelledData
        self.score: evaluate_model.ScoreConfig

    def start(self, data_config: DataConfig, models: list[str], refinement: RefineConfig | None) -> None:
        """Open the data, check their classes against all models, and load these.

        With `refinement`, the first model's maps are refined; a single model is then compared with itself.
        """
        from rsseg_cli.data import datasets
        from rsseg_cli.evaluation import evaluate_model
        from rsseg_cli.weights import load_model, read_spec

        specs = [read_spec(name) for name in models]
        if self.split in ("test", "all"):  # its notes on the validation part do not matter here
            logging.getLogger("rsseg_cli.data.split").setLevel(logging.ERROR)
        config = for_split(data_config, self.split, specs[0].bands)
        self.data = evaluate_model.with_colours(
            datasets.open_data(config, default_classes=specs[0].classes), specs[0]
        )
        self.score = evaluate_model.score_config(
            self.data,
            erode_px=self._scoring.get("erode_px"),
            widths_px=self._scoring.get("boundary_widths_px", ()),
        )
        evaluate_model.sources_of(self.data, self.split)
        for spec in specs:
            evaluate_model.check_classes(spec, self.data)
        self.names = [spec.name for spec in specs]
        if len(set(self.names)) < len(self.names):
            self.names = list(models)
        if refinement is None:
            self.entries = [(load_model(name), None) for name in models]
            return
        from rsseg_cli.pipeline import refinement as refiners

        refinement = refiners.with_refiner(specs[0], models[0], refinement)
        loaded = [load_model(name) for name in models]
        self.entries = [(loaded[0], refinement), (loaded[-1], None)]
        self.names = [f"{self.names[0]}, refined", self.names[-1]]

    def results(self) -> list[evaluate_model.Evaluation]:
        """Score each model; only the first gets pictures of its worst tiles."""
        from rsseg_cli.evaluation import evaluate

        return [
            evaluate(
                model,
                self.data,
                self.split,
                config=self.config,
                refine=refinement,
                score=self.score,
                pictures=index == 0,
                progress=None if self.quiet else self._show,
            )
            for index, (model, refinement) in enumerate(self.entries)
        ]

    def compare(
        self, first: evaluate_model.Evaluation, second: evaluate_model.Evaluation
    ) -> comparisons.Comparison:
        from rsseg_cli.evaluation import comparison as comparisons

        comparison = comparisons.compare(
            first.result.tiles,
            second.result.tiles,
            self.score.names,
            names=(self.names[0], self.names[1]),
            out_of_means=self.score.protocol.out_of_means,
        )
        if comparison.few_tiles:
            logger.warning(
                "%d tiles hold labels; under 20 the intervals are rough, and too narrow", comparison.tiles
            )
        return comparison

    def write_report(
        self,
        folder: Path,
        done: evaluate_model.Evaluation,
        comparison: comparisons.Comparison | None,
        *,
        overwrite: bool,
    ) -> Path:
        from rsseg_cli.evaluation import report as reports

        part = "" if self.split == "all" else f", {self.split} part"
        return reports.write_report(
            folder,
            done.result,
            title=f"{self.names[0]} on {self.data.name}{part}",
            classes=self.data.classes,
            model=self.names[0],
            settings=self._settings(),
            tiles=done.worst,
            comparison=comparison,
            out_of_means=self.score.protocol.out_of_means,
            overwrite=overwrite,
        )

    def _settings(self) -> dict[str, Any]:
        protocol, config, spec = self.score.protocol, self.config, self.entries[0][0].spec
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

    def _show(self, done: evaluate_model.SourceDone) -> None:
        size = f"{done.pixels / 1e6:.1f} Mpx in {done.seconds:.1f} s"
        typer.echo(f"rsseg: {done.model}, {done.number} of {done.sources}: {done.name}, {size}", err=True)


def for_split(config: DataConfig, split: str, bands: tuple[str, ...]) -> DataConfig:
    """Take the model's bands, and leave a folder whole where no validation part is needed."""
    if config.dataset:
        return replace(config, bands=config.bands or bands)
    if split == "all" and config.folders:
        return replace(config, test=("*",), val=())
    if split == "test" and config.folders and not config.val:
        return replace(config, val=("*",))
    return config
