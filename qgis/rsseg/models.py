"""The models that the program brings: choices of the forms, and a table."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import Any

from qgis.core import (
    QgsFeature,
    QgsProcessing,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFile,
    QgsSettings,
    QgsVectorLayer,
)

from . import program
from .algorithm import RssegAlgorithm, find_program

CACHE = "rsseg/models"  # setting with the last list: QGIS starts without a run of the program
FALLBACK = {"landcover": False, "buildings": False, "landcover-refiner": True, "buildings-refiner": True}
FIELDS = ("name", "description", "classes", "bands", "gsd_m", "license")


class _Silent:
    """Takes what a run says where nobody looks."""

    def isCanceled(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return lambda *said: None


def model_names(*, refiners: bool) -> list[str]:
    """The program's models that map, or those that refine; the released ones where it does not say."""
    try:
        path = find_program()
        known = _listed(path, os.path.getmtime(path))
    except (program.ProgramError, OSError):
        known = FALLBACK
    return [name for name, refines in known.items() if refines == refiners]


@lru_cache(maxsize=8)
def _listed(path: str, modified: float) -> dict[str, bool]:
    try:
        kept = json.loads(QgsSettings().value(CACHE, "{}"))
        if (kept.get("program"), kept.get("modified")) == (path, modified):
            return kept["models"]
        found = json.loads(program.run(path, ["models", "list", "--json"], _Silent()))
        return _keep(path, modified, found)
    except (program.ProgramError, ValueError, KeyError, TypeError):  # another program, or an earlier version
        return FALLBACK


def _keep(path: str, modified: float, found: list[dict[str, Any]]) -> dict[str, bool]:
    names = {item["name"]: item["is_refiner"] for item in found}
    QgsSettings().setValue(CACHE, json.dumps({"program": path, "modified": modified, "models": names}))
    return names


def add_model(
    algorithm: RssegAlgorithm, name: str = "MODEL", *, refiners: bool = False, endings: str = "*.safetensors"
) -> None:
    """A choice of the program's models, and of a file instead."""
    title, names = ("Refiner" if refiners else "Model"), model_names(refiners=refiners)
    first = next((item for item in names if item.startswith("landcover")), *names[:1])
    algorithm.addParameter(
        QgsProcessingParameterEnum(name, title, names, defaultValue=first, usesStaticStrings=True)
    )
    algorithm.addParameter(
        QgsProcessingParameterFile(
            f"{name}_FILE",
            f"{title} file, instead of a bundled one",
            optional=True,
            fileFilter=f"Model files ({endings})",
        )
    )


def chosen_model(algorithm, parameters, context, name: str = "MODEL") -> str:
    file = algorithm.parameterAsFile(parameters, f"{name}_FILE", context)
    return file or algorithm.parameterAsEnumString(parameters, name, context)


class Models(RssegAlgorithm):
    NAME = "models"
    TITLE = "Models"
    HELP = (
        "Lists the models that the program brings: classes, bands, ground resolution and licence. The forms "
        "of the other algorithms offer these from then on."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterFeatureSink("OUTPUT", "Models", QgsProcessing.TypeVector))

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        found = self.run_rsseg(["models", "list"], feedback)
        path = find_program()
        _keep(path, os.path.getmtime(path), found)
        _listed.cache_clear()
        kinds = "&".join(f"field={name}:{'double' if name == 'gsd_m' else 'string'}" for name in FIELDS)
        layout = QgsVectorLayer(f"NoGeometry?{kinds}", "models", "memory")
        sink, target = self.parameterAsSink(
            parameters, "OUTPUT", context, layout.fields(), layout.wkbType(), layout.crs()
        )
        for item in found:
            values = [item[name] for name in FIELDS]
            feature = QgsFeature(layout.fields())
            feature.setAttributes(
                [", ".join(value) if isinstance(value, list) else value for value in values]
            )
            sink.addFeature(feature)
            feedback.pushInfo(f"{item['name']}: {item['description']} Classes: {', '.join(item['classes'])}.")
        return {"OUTPUT": target}
