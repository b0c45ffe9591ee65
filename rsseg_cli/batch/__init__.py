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
    {
        "BatchSettings": "settings",
        "LocalEngine": "local",
        "RayEngine": "ray_engine",
        "SceneTask": "task",
        "list_scenes": "scenes",
        "run_batch": "run",
    },
)
