"""Many scenes on one machine or a Ray cluster, with a manifest of what is done."""

from rsseg_cli._lazy import lazy_names

__all__ = [
    "BatchResult",
    "BatchSettings",
    "LocalEngine",
    "RayEngine",
    "SceneReport",
    "SceneTask",
    "list_scenes",
    "run_batch",
]
__getattr__ = lazy_names(
    __name__,
    {
        "BatchResult": "run",
        "BatchSettings": "settings",
        "LocalEngine": "local",
        "RayEngine": "ray_engine",
        "SceneReport": "run",
        "SceneTask": "task",
        "list_scenes": "scenes",
        "run_batch": "run",
    },
)
