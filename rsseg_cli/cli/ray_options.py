"""Options of `rsseg predict` for work on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rsseg_cli.batch.ray_engine import RayEngine

EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine", help="local: this machine. ray: workers of a Ray cluster, see docs/scale.md (rsseg[ray])."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT",
        help="The Ray cluster: auto for the one that this machine belongs to. Default: $RAY_ADDRESS, else a "
        "cluster of this machine alone, for this run.",
    ),
]
SplitAbove = Annotated[
    float | None,
    typer.Option(
        metavar="MPX",
        help="With --engine ray: scenes of more megapixels are shared out among all workers, others go to "
        "one each. Default: 400; a scene that is the only one is always shared out.",
    ),
]


def ray_engine(
    engine: str,
    address: str | None,
    split_mpx: float | None,
    *,
    jobs: int | None,
    device: str,
    alone: bool,
) -> RayEngine | None:
    """The engine, where Ray is asked for.

    Args:
        jobs: workers; None or 0 for as many as the cluster has places for.
        alone: there is but one scene.

    Raises:
        UsageError: Ray is not installed, or the device is none of its workers'.
    """
    if engine == "local":
        if address is not None or split_mpx is not None:
            raise typer.BadParameter(
                "--ray-address and --split-above need --engine ray", param_hint="--engine"
            )
        return None
    if split_mpx is not None and not split_mpx >= 0:
        raise typer.BadParameter(f"{split_mpx}: needs megapixels, 0 or more", param_hint="--split-above")
    from rsseg_cli.batch.ray_cluster import ray_module
    from rsseg_cli.batch.ray_engine import SPLIT_PX, RayEngine

    ray_module()
    default_px = 0 if alone else SPLIT_PX
    split_px = default_px if split_mpx is None else int(split_mpx * 1e6)
    return RayEngine(address=address, workers=jobs or None, device=device, split_px=split_px)
