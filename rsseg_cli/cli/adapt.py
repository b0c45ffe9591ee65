"""`rsseg adapt`: make a model know a place from a few drawn labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.progress import Bar
from rsseg_cli.errors import UsageError
from rsseg_cli.training import config as kinds


@from_settings
def adapt_command(
    scene: Annotated[
        Path | None, opt.argument("[SCENE.tif]", "Scene on which the labels were drawn.")
    ] = None,
    labels: Annotated[
        Path | None,
        opt.argument("[LABELS]", "Polygons, lines or points with a class: any vector file, in any CRS."),
    ] = None,
    *,
    output: Annotated[Path, opt.option("MODEL.safetensors", "Model file to write.", "-o", "--output")],
    scenes: Annotated[
        Path | None, opt.option("LIST.csv", "Several scenes instead: columns image and labels.")
    ] = None,
    config: Annotated[kinds.AdaptConfig, Options()],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Adapt a model to a place from a few drawn labels, in minutes.

    Draw where the map is wrong, a few shapes of each class concerned; what is not drawn counts as unknown. Of
    classes with three shapes or more a fifth is held out to score the model. Ctrl-C keeps the best state so
    far; --resume continues.

    Example: rsseg adapt scene.tif corrections.gpkg --model landcover -o mine.safetensors
    """
    from rsseg_cli.data import datasets
    from rsseg_cli.training import adapt

    if scenes is not None and scene is None:
        pairs = [(item.image, item.labels) for item in datasets.read_scene_list(scenes)]
    elif scenes is None and scene is not None and labels is not None:
        pairs = [(scene, labels)]
    else:
        raise UsageError("needs SCENE.tif and LABELS, or --scenes LIST.csv")
    with Bar("train", "%", hidden=quiet) as bar:
        result = adapt(
            pairs, output, config, progress=lambda done, words: bar.show(int(100 * done), 100, words)
        )
    opt.show(result, summary, as_json=as_json)


def summary(result: Any) -> str:
    """Word scores before and after."""
    lines = [f"{result.path}: {result.steps} steps in {result.seconds / 60:.1f} minutes"]
    drawn = ", ".join(f"{name} {area:.0f} m2" for name, area in result.labelled_m2.items() if area)
    lines.append(f"  drawn: {drawn}; {result.held_out} labels held out")
    if result.before and result.after:
        for key, name in (("miou", "mIoU"), ("overall_accuracy", "overall accuracy")):
            lines.append(f"  {name} on held-out labels: {result.before[key]:.3f} -> {result.after[key]:.3f}")
    lines.append(f"  {result.changed_share:.1%} of the scene is mapped as another class than before")
    return "\n".join([*lines, *(f"  {note}" for note in result.notes)])
