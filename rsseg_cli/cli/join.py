"""`rsseg models average` and `rsseg models combine`: one model of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsseg_cli.cli import options as opt

if TYPE_CHECKING:
    from rsseg_cli.weights import TrainedModel

Name = Annotated[str, typer.Option(help="The model's name. Default: the output's name.")]


def average_command(
    models: Annotated[
        list[str],
        opt.argument(
            "MODEL RUN...",
            "A model, and further models or checkpoints (runs/NAME/last.ckpt) of the same network.",
        ),
    ],
    output: opt.ModelOutput,
    name: Name = "",
    overwrite: opt.Overwrite = False,
) -> None:
    """Average the weights of runs with the same start.

    The mean is often better than each of them, at no cost to run. The runs should share --seed and differ in
    data order or length; compare with rsseg eval --split val.

    Example: rsseg models average a.safetensors runs/b/last.ckpt -o mean.safetensors
    """
    from rsseg_cli.weights import registry

    registry.check_target(output, overwrite)
    _save(registry.average_models(models[0], models[1:]), output, name, overwrite)
    typer.echo(f"{output}: mean of {len(models)} models; score it with rsseg eval")


def combine_command(
    model: Annotated[str, opt.argument("MODEL", "A model: bundled or a file.")],
    output: opt.ModelOutput,
    partner: Annotated[
        str, typer.Option(metavar="MODEL", help="A second model; it may know other classes.")
    ] = "",
    zoom: Annotated[
        float, typer.Option(help="Look a second time at so many times the size; the partner looks there too.")
    ] = 1.0,
    name: Name = "",
    overwrite: opt.Overwrite = False,
) -> None:
    """Combine looks at a scene, whose probabilities are averaged, into one model.

    The partner's classes are matched by name. Of models that are themselves combined the first look is taken.
    Better than each look, and slower by all of them: of 1.5 times the size by 2.25 for the second look, and
    as much for the partner.

    Example: rsseg models combine landcover-small --partner buildings-small --zoom 1.5 -o both.safetensors
    """
    from rsseg_cli.weights import registry

    registry.check_target(output, overwrite)
    _save(registry.combine_models(model, partner or None, zoom), output, name, overwrite)
    typer.echo(f"{output}: {model} combined; score it with rsseg eval")


def _save(model: TrainedModel, output: Path, name: str, overwrite: bool) -> None:
    from rsseg_cli.weights import save_model

    save_model(output, model.network, replace(model.spec, name=name or output.stem), overwrite=overwrite)
