"""`rsseg suggest`: where a label helps most."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rsseg_cli.accuracy import config as kinds
from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.progress import Bar


@from_settings
def suggest_command(
    scene: Annotated[str, opt.argument("SCENE.tif", "Scene that was mapped.")],
    labels: Annotated[str, opt.argument("MAP.tif", "Its map, as rsseg predict writes it.")],
    *,
    confidence: Annotated[str, opt.option("C.tif", "Confidence of the map, from predict --confidence.")],
    output: Annotated[Path, opt.output("FILE", "Squares: .gpkg .geojson .fgb")],
    config: Annotated[kinds.SuggestConfig, Options()],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Suggest squares to label next: where the map is unsure, unlike one another, and far apart.

    Fill in the field "class" in QGIS; leave empty what you cannot tell or what holds several classes. Pass
    the file to `rsseg adapt`.

    Example: rsseg suggest scene.tif map.tif --confidence sure.tif -n 20 -o look_here.gpkg
    """
    from rsseg_cli.accuracy import suggest

    with Bar("read", "row", hidden=quiet) as bar:
        result = suggest(scene, labels, confidence, output, config, progress=bar.show)
    opt.show(result, summary, as_json=as_json)


def summary(result: Any) -> str:
    """Word the path of the file and its first squares."""
    lines = [f"{result.path}: {len(result.squares)} squares"]
    lines += [f"  {rank:>3}  {item.reason}" for rank, item in enumerate(result.squares[:10], 1)]
    return "\n".join(lines)
