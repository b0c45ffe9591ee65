"""Many scenes on one machine or a Ray cluster, with a manifest of what is done."""

from rsseg_cli._lazy import lazy_names

__all__ = [
    "BatchSettings",
    "LocalEngine",
    "RayEngine",
    "SceneTask",
    "list_scenes",
    "run",
    "run_batch",
    "scenes",
]
__getattr__ = lazy_names(
    __name__,
    settings="BatchSettings",
    local="LocalEngine",
    ray_engine="RayEngine",
    task="SceneTask",
    scenes="list_scenes",
    run="run_batch",
)
