"""`rsseg eval`: how well a model maps labelled scenes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rsseg_cli.cli import data_options as opt
from rsseg_cli.cli.options import BandM, Ensemble, Refiner, Steps, Tta, refine_config, require_refine
from rsseg_cli.cli.tables import parse_widths, print_comparison, print_scores
from rsseg_cli.config import PredictConfig

if TYPE_CHECKING:
    from rsseg_cli.config import RefineConfig
    from rsseg_cli.data.types import DataConfig, LabelledData
    from rsseg_cli.evaluation.compare import Comparison
    from rsseg_cli.evaluation.evaluate_model import Evaluation, SourceDone
    from rsseg_cli.evaluation.scoring import ScoreConfig
    from rsseg_cli.weights import TrainedModel

DEFAULTS = PredictConfig()
DEFAULT_WIDTHS = "1,3,5,10"


def eval_command(
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="A model that comes along, or a .safetensors file.")
    ],
    dataset: opt.Dataset = "",
    root: opt.Root = None,
    domains: opt.Domains = opt.DOMAINS,
    data: opt.Data = None,
    images: opt.Images = opt.IMAGES,
    masks: opt.Masks = opt.MASKS,
    scenes: opt.Scenes = None,
    val: opt.Val = None,
    test: opt.Test = None,
    val_share: opt.ValShare = opt.VAL_SHARE,
    classes: opt.Classes = "",
    label_field: opt.LabelField = "",
    vector_class: opt.VectorClass = "",
    outside: opt.Outside = "",
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(
            help="Part of the data to score; all is every scene, whatever part it is in. Default: test; "
            "all for a folder without --val and --test.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="As given to train: decides which scenes it held out for validation; and of the refiner's "
            "noise.",
        ),
    ] = 0,
    tta: Tta = DEFAULTS.tta,
    tile_size: Annotated[
        int, typer.Option(metavar="PX", help="Side of a tile, px: a multiple of 32.")
    ] = DEFAULTS.tile_size,
    overlap: Annotated[
        int, typer.Option(metavar="PX", help="What neighbouring tiles share, px: 0 to half a tile.")
    ] = DEFAULTS.overlap,
    gsd: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="Ground resolution that the network sees, metres a pixel. Default: the model's, where a "
            "scene's does not suit it.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = DEFAULTS.device,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Arithmetic; auto is bfloat16 on CUDA, float32 elsewhere."),
    ] = DEFAULTS.dtype,
    boundary_widths: Annotated[
        str,
        typer.Option(metavar="1,3,...", help="Distances from a border for its scores, px of the scenes."),
    ] = DEFAULT_WIDTHS,
    erode: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Leave out labels this near to a border between classes, 3 for ISPRS' eroded scores; "
            "boundary scores keep them. Default: as the data set's published protocol.",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="A second model on the same scenes: differences with 95% intervals, from 2000 resamples of "
            "the tiles.",
        ),
    ] = "",
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Score the maps as a refiner leaves them, against the model's own (or those of --against).",
        ),
    ] = False,
    refiner: Refiner = None,
    steps: Steps = None,
    band_m: BandM = None,
    ensemble: Ensemble = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write a page of scores and of the worst places, and its numbers as JSON.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Score a model on labelled scenes: each is mapped whole, as `rsseg predict` does, and the map scored.

    Classes are the model's unless --classes names those of the labels; they are matched by name. Unlabelled
    pixels never count; what is mapped as a class that the data do not have, or not at all, counts as wrong.
    Published data sets are scored by their published protocol.

    With --json: as `rsseg score`, and with --against or --refine the comparison under `against`.

    Example: rsseg eval --model landcover --data sheets --test 'north_*' --report scores
    """
    predict_config = PredictConfig(
        tile_size=tile_size, overlap=overlap, tta=tta, device=device, dtype=dtype, gsd_m=gsd
    )
    refinement = refine_config(refiner, steps, band_m, ensemble, seed, tile_size=tile_size)
    require_refine(refine, refiner, steps, band_m, ensemble)
    widths = parse_widths(boundary_widths)
    split = split or ("test" if dataset or scenes or val or test else "all")
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    data_config = opt.data_config(
        dataset=dataset, root=root, domains=domains, data=data, images=images, masks=masks, scenes=scenes,
        val=val, test=test, val_share=val_share, classes=classes, label_field=label_field,
        vector_class=vector_class, outside=outside, seed=seed,
    )  # fmt: skip
    run = _Run(quiet=quiet, split=split, config=predict_config, erode_px=erode, widths_px=widths)
    if report is not None:
        from rsseg_cli.evaluation.report import check_report_folder

        check_report_folder(report, overwrite=overwrite)
    run.start(data_config, [model, against] if against else [model], refinement if refine else None)
    done, *others = run.results()
    comparison = run.compare(done, others[0]) if others else None
    if report is not None:
        page = run.write_report(report, done, comparison, overwrite=overwrite)
        typer.echo(f"rsseg: report: {page}", err=True)
    scores = done.result.scores
    if as_json:
        more = {"against": comparison.as_dict()} if comparison else {}
        typer.echo(json.dumps({**scores, **more}, indent=2, ensure_ascii=False))
        return
    print_scores(scores)
    typer.echo(f"{scores['pixels'] / 1e6:.2f} Mpx scored, {scores['unlabelled_share']:.1%} unlabelled")
    if comparison:
        typer.echo("")
        print_comparison(comparison.as_dict())


class _Run:
    """One evaluation of one or two models: what they share."""

    def __init__(
        self,
        *,
        quiet: bool,
        split: str,
        config: PredictConfig,
        erode_px: int | None,
        widths_px: tuple[int, ...],
    ) -> None:
        self.quiet, self.split, self.config = quiet, split, config
        self._erode_px, self._widths_px = erode_px, widths_px
        self.entries: list[tuple[TrainedModel, RefineConfig | None]] = []
        self.names: list[str] = []
        self.data: LabelledData
        self.score: ScoreConfig

    def start(self, data_config: DataConfig, models: list[str], refinement: RefineConfig | None) -> None:
        """Find the data, check their classes against all models, and load these.

        The first one's maps are refined where that is asked for; then a single model stands against itself.
        """
        from rsseg_cli.data.datasets import open_data
        from rsseg_cli.evaluation.evaluate_model import check_classes, score_config, sources_of, with_colours
        from rsseg_cli.weights import load_model, read_spec

        specs = [read_spec(name) for name in models]
        if self.split in ("test", "all"):  # what it says of the validation part does not matter here
            logging.getLogger("rsseg_cli.data.split").setLevel(logging.ERROR)
        config = for_split(data_config, self.split, specs[0].bands)
        self.data = with_colours(open_data(config, default_classes=specs[0].classes), specs[0])
        self.score = score_config(self.data, erode_px=self._erode_px, widths_px=self._widths_px)
        sources_of(self.data, self.split)
        for spec in specs:
            check_classes(spec, self.data)
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

    def results(self) -> list[Evaluation]:
        """Of each model; pictures of the first alone."""
        from rsseg_cli.evaluation.evaluate_model import evaluate

        return [
            evaluate(
                model,
                self.data,
                self.split,
                config=self.config,
                refine=refinement,
                score=self.score,
                places=index == 0,
                progress=None if self.quiet else self._show,
            )
            for index, (model, refinement) in enumerate(self.entries)
        ]

    def compare(self, first: Evaluation, second: Evaluation) -> Comparison:
        from rsseg_cli.evaluation.compare import compare

        comparison = compare(
            first.result.tiles,
            second.result.tiles,
            self.score.names,
            names=(self.names[0], self.names[1]),
            out_of_means=self.score.protocol.out_of_means,
        )
        if comparison.few_tiles:
            logging.getLogger("rsseg_cli").warning(
                "%d tiles hold labels; under 20 the intervals are rough, and too narrow", comparison.tiles
            )
        return comparison

    def write_report(
        self, folder: Path, done: Evaluation, comparison: Comparison | None, *, overwrite: bool
    ) -> Path:
        from rsseg_cli.evaluation.report import write_report

        part = "" if self.split == "all" else f", {self.split} part"
        return write_report(
            folder,
            done.result,
            title=f"{self.names[0]} on {self.data.name}{part}",
            classes=self.data.classes,
            model=self.names[0],
            settings=self._settings(),
            places=done.places,
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

    def _show(self, done: SourceDone) -> None:
        size = f"{done.pixels / 1e6:.1f} Mpx in {done.seconds:.1f} s"
        typer.echo(f"rsseg: {done.model}, {done.number} of {done.sources}: {done.name}, {size}", err=True)


def for_split(config: DataConfig, split: str, bands: tuple[str, ...]) -> DataConfig:
    """The data as eval needs them: the model's bands, and no folder split in two for nothing."""
    if config.dataset:
        return replace(config, bands=config.bands or bands)
    if split == "all" and config.folders:
        return replace(config, test=("*",), val=())
    if split == "test" and config.folders and not config.val:
        return replace(config, val=("*",))
    return config
