"""Algorithms about truth: scores of a map, labels that help most, models that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingOutputHtml,
    QgsProcessingOutputNumber,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
    QgsVectorLayer,
)

from .algorithm import RssegAlgorithm, given
from .models import add_model, chosen_model

SCORES = {  # outputs, keys of the result, and titles
    "MIOU": ("miou", "Mean IoU"),
    "MEAN_F1": ("mean_f1", "Mean F1"),
    "OVERALL_ACCURACY": ("overall_accuracy", "Overall accuracy"),
    "KAPPA": ("kappa", "Kappa"),
}


class Score(RssegAlgorithm):
    NAME = "score"
    TITLE = "Score"
    HELP = (
        "Scores a map against truth: a label raster or polygons, on any grid and in any CRS. Classes are "
        "matched by name; pixels without a label do not count."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Map"))
        kinds = [QgsProcessing.TypeRaster, QgsProcessing.TypeVectorPolygon]
        self.addParameter(QgsProcessingParameterMapLayer("TRUTH", "Truth", types=kinds))
        self.addParameter(
            QgsProcessingParameterString("FIELD", "Field with the class, of polygons", optional=True)
        )
        self.addParameter(
            QgsProcessingParameterString(
                "CLASS", "Class of all polygons, where no field names it", optional=True
            )
        )
        self.add_options("score")
        self.addParameter(
            QgsProcessingParameterFolderDestination("REPORT", "Report", optional=True, createByDefault=False)
        )
        self.addOutput(QgsProcessingOutputHtml("PAGE", "Report"))
        for name, (_, title) in SCORES.items():
            self.addOutput(QgsProcessingOutputNumber(name, title))

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        is_vector = isinstance(self.parameterAsLayer(parameters, "TRUTH", context), QgsVectorLayer)
        read = self.vector(parameters, "TRUTH", context, feedback) if is_vector else None
        truth = read or self.raster(parameters, "TRUTH", context)
        report = self.parameterAsString(parameters, "REPORT", context)
        arguments = ["score", self.raster(parameters, "MAP", context), truth]
        arguments += given("--label-field", self.parameterAsString(parameters, "FIELD", context))
        arguments += given("--vector-class", self.parameterAsString(parameters, "CLASS", context))
        if report:
            arguments += ["--report", report, "--overwrite"]
        result = self.run_rsseg([*arguments, *self.options(parameters, context)], feedback)
        for item in result["classes"]:
            feedback.pushInfo(f"{item['name']}: IoU {_decimal(item['iou'])}, F1 {_decimal(item['f1'])}")
        for key, title in SCORES.values():
            feedback.pushInfo(f"{title}: {_decimal(result[key])}")
        pages = {"REPORT": report, "PAGE": str(Path(report, "index.html"))} if report else {}
        return {name: result[key] for name, (key, _) in SCORES.items()} | pages


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


class Suggest(RssegAlgorithm):
    NAME = "suggest"
    TITLE = "Suggest"
    HELP = (
        "Suggests squares to label next: where the map is unsure, unlike one another and far apart. Fill in "
        "the field 'class' of those that you can tell, and pass them to Adapt."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Scene"))
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Map"))
        self.addParameter(QgsProcessingParameterRasterLayer("CONFIDENCE", "Confidence of the map"))
        self.addParameter(
            QgsProcessingParameterNumber("NUMBER", "Squares", defaultValue=20, minValue=1, maxValue=10000)
        )
        self.add_options("suggest")
        self.addParameter(
            QgsProcessingParameterVectorDestination("OUTPUT", "Squares", QgsProcessing.TypeVectorPolygon)
        )

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        output = self.destination(parameters, "OUTPUT", context)
        arguments = ["suggest", *(self.raster(parameters, name, context) for name in ("INPUT", "MAP"))]
        arguments += ["--confidence", self.raster(parameters, "CONFIDENCE", context), "-o", output]
        arguments += ["-n", str(self.parameterAsInt(parameters, "NUMBER", context)), "--overwrite"]
        self.run_rsseg([*arguments, *self.options(parameters, context)], feedback)
        return {"OUTPUT": output}


class Adapt(RssegAlgorithm):
    NAME = "adapt"
    TITLE = "Adapt"
    HELP = (
        "Adapts a model to a place from a few drawn labels: polygons, lines or points with a class. Draw "
        "where the map is wrong, a few shapes of each class concerned; what is not drawn counts as unknown."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Scene"))
        kinds = [QgsProcessing.TypeVectorAnyGeometry]
        self.addParameter(QgsProcessingParameterVectorLayer("LABELS", "Labels", kinds))
        self.addParameter(
            QgsProcessingParameterField(
                "FIELD", "Field with the class", defaultValue="class", parentLayerParameterName="LABELS"
            )
        )
        add_model(self)
        self.addParameter(
            QgsProcessingParameterString(
                "NEW_CLASSES", "Classes that the model does not know: a,b", optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterNumber(
                "MINUTES", "Time to train, minutes", QgsProcessingParameterNumber.Double, defaultValue=10,
                minValue=0,
            )
        )  # fmt: skip
        self.add_options("adapt")
        self.addParameter(
            QgsProcessingParameterFileDestination("OUTPUT", "Model", "Model files (*.safetensors)")
        )

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        output = self.parameterAsFileOutput(parameters, "OUTPUT", context)
        labels = self.vector(parameters, "LABELS", context, feedback)
        arguments = ["adapt", self.raster(parameters, "INPUT", context), labels, "-o", output, "--overwrite"]
        arguments += ["--model", chosen_model(self, parameters, context)]
        arguments += given("--label-field", self.parameterAsString(parameters, "FIELD", context))
        arguments += given("--new-classes", self.parameterAsString(parameters, "NEW_CLASSES", context))
        arguments += ["--minutes", str(self.parameterAsDouble(parameters, "MINUTES", context))]
        result = self.run_rsseg([*arguments, *self.options(parameters, context)], feedback)
        for moment in ("before", "after"):
            if result.get(moment):
                feedback.pushInfo(
                    f"Mean IoU on held-out labels, {moment}: {_decimal(result[moment]['miou'])}"
                )
        return {"OUTPUT": output}
