"""`rsseg eval`: score a model on labelled scenes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.messages import say
from rsseg_cli.cli.tables import comparison_table, score_table
from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.data import DataConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.evaluation import PairConfig

if TYPE_CHECKING:
    from rsseg_cli.evaluation import SourceDone

SCORING_HELP = {
    "boundary_widths_px": "Distances from a class border at which to score boundaries, px of the scenes.",
    "erode_px": "Ignore labels within this distance of a class border, 3 for ISPRS' eroded scores; boundary "
    "scores keep them. Default: the published protocol of the data set.",
}


@from_settings
def eval_command(
    model: opt.Model,
    *,
    data: Annotated[DataConfig, Options(opt.LABELLED)],
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(
            help="Part of the data to score; all is every scene, whatever its part. Default: test; all for a "
            "folder without --val and --test."
        ),
    ] = None,
    seed: Annotated[
        int,
        opt.option(
            "N",
            "Seed given to train: decides which scenes it held out for validation; also seeds the "
            "refiner's noise.",
        ),
    ] = 0,
    config: Annotated[PredictConfig, Options("tta tile_size overlap gsd_m device runtime dtype")],
    scoring: Annotated[
        dict[str, Any], Options("boundary_widths_px erode_px", help=SCORING_HELP, of=(PairConfig(),))
    ],
    against: Annotated[
        str,
        opt.option(
            "NAME|PATH",
            "A second model for the same scenes: differences with 95% intervals, from 2000 resamples of "
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
    """Score a model on labelled scenes.

    Each scene is mapped whole, as by `rsseg predict`, and its map scored. Classes are the model's unless
    --classes names those of the labels; they are matched by name. Unlabelled pixels never count; pixels
    mapped as a class that the data do not have, or not mapped, count as wrong. Published data sets are scored
    by their published protocol.

    With --json: as `rsseg score`, and with --against or --refine the comparison under `against`.

    Example: rsseg eval --model landcover --data sheets --test 'north_*' --report scores
    """
    from rsseg_cli.evaluation import EvaluationRun
    from rsseg_cli.evaluation import report as reports

    if not refine and refinement != RefineConfig():
        raise UsageError("options about refining need --refine")
    if report is not None:
        reports.check_report_folder(report, overwrite=overwrite)
    refinement = replace(refinement, seed=seed, tile_size=config.tile_size)
    run = EvaluationRun(
        [model, against] if against else [model],
        replace(data, seed=seed),
        split or "",
        config=config,
        refine=refinement if refine else None,
        progress=None if quiet else _show,
        **scoring,
    )
    done, comparison = run.run()
    if report is not None:
        page = run.write_report(report, done, comparison, overwrite=overwrite)
        say(f"rsseg: report: {page}")
    scores = done.result.scores
    if as_json:
        opt.echo_json({**scores, **({"against": comparison.as_dict()} if comparison else {})})
        return
    typer.echo(score_table(scores))
    typer.echo(f"{scores['pixels'] / 1e6:.2f} Mpx scored, {scores['unlabelled_share']:.1%} unlabelled")
    if comparison:
        typer.echo(f"\n{comparison_table(comparison.as_dict())}")


def _show(done: SourceDone) -> None:
    size = f"{done.pixels / 1e6:.1f} Mpx in {done.seconds:.1f} s"
    say(f"rsseg: {done.model}, {done.number} of {done.sources}: {done.name}, {size}")
