"""Algorithms that make maps and polygons."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
)

from .algorithm import RssegAlgorithm, given
from .models import add_model, chosen_model

VIEWS = ("none", "flip", "d4", "scales")
SIZES = {  # of polygons: parameters and options, with a title
    "MIN_AREA": ("--min-area", "Merge objects below this area, m2"),
    "FILL_HOLES": ("--fill-holes", "Fill holes below this area, m2"),
    "SIMPLIFY": ("--simplify", "Simplify outlines by about this length, m"),
}


class Predict(RssegAlgorithm):
    NAME = "predict"
    TITLE = "Predict"
    HELP = (
        "Maps the land cover of a scene of any size by a trained model: a raster of classes on the scene's "
        "own grid, with names and colours. All pixels of the scene's file are read, whatever the layer's "
        "style shows."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Scene"))
        add_model(self, endings="*.safetensors *.onnx")
        self.addParameter(
            QgsProcessingParameterBoolean("REFINE", "Redraw boundaries by the model's refiner", False)
        )
        self.addParameter(QgsProcessingParameterExtent("EXTENT", "Only this extent", optional=True))
        self.addParameter(
            QgsProcessingParameterVectorLayer(
                "AREA", "Only inside these polygons", [QgsProcessing.TypeVectorPolygon], optional=True
            )
        )
        self.add_advanced(
            QgsProcessingParameterNumber(
                "GSD", "Ground resolution that the model sees, m; empty: the model's own",
                QgsProcessingParameterNumber.Double, optional=True, minValue=0,
            )
        )  # fmt: skip
        self.add_advanced(
            QgsProcessingParameterEnum(
                "VIEWS", "Average over turned views, for more accuracy and time", VIEWS,
                defaultValue="none", usesStaticStrings=True,
            )
        )  # fmt: skip
        self.add_options("predict")
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", "Map"))
        self.addParameter(
            QgsProcessingParameterRasterDestination(
                "CONFIDENCE", "Confidence of the map", optional=True, createByDefault=False
            )
        )

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        scene = self.parameterAsRasterLayer(parameters, "INPUT", context)
        paths = {
            "OUTPUT": self.destination(parameters, "OUTPUT", context),
            "CONFIDENCE": self.destination(parameters, "CONFIDENCE", context),
        }
        arguments = ["predict", self.raster(parameters, "INPUT", context), "-o", paths["OUTPUT"]]
        arguments += ["--model", chosen_model(self, parameters, context), "--overwrite"]
        arguments += given("--confidence", paths["CONFIDENCE"])
        if self.parameterAsBool(parameters, "REFINE", context):
            arguments.append("--refine")
        extent = self.parameterAsExtent(parameters, "EXTENT", context, scene.crs())
        if not extent.isNull():
            edges = (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())
            arguments += ["--bbox", *map(repr, edges)]
        arguments += given("--aoi", self.vector(parameters, "AREA", context, feedback))
        arguments += given("--gsd", self.parameterAsDouble(parameters, "GSD", context) or None)
        arguments += given("--tta", self.parameterAsEnumString(parameters, "VIEWS", context))
        result = self.run_rsseg([*arguments, *self.options(parameters, context)], feedback)
        for name, item in result["classes"].items():
            area = "" if item["area_m2"] is None else f", {item['area_m2'] / 1e4:.2f} ha"
            feedback.pushInfo(f"{name}: {item['share']:.2%}{area}")
        return {name: path for name, path in paths.items() if path}


class Refine(RssegAlgorithm):
    NAME = "refine"
    TITLE = "Refine"
    HELP = (
        "Redraws the class boundaries of a map where the scene has them. Only pixels near a boundary may "
        "change. The map's classes must be the refiner's."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Scene"))
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Map"))
        add_model(self, "REFINER", refiners=True)
        self.add_options("refine")
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", "Refined map"))

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        output = self.destination(parameters, "OUTPUT", context)
        inputs = [self.raster(parameters, name, context) for name in ("INPUT", "MAP")]
        refiner = chosen_model(self, parameters, context, "REFINER")
        arguments = ["refine", *inputs, "-o", output, "--refiner", refiner, "--overwrite"]
        self.run_rsseg([*arguments, *self.options(parameters, context)], feedback)
        return {"OUTPUT": output}


class Polygons(RssegAlgorithm):
    NAME = "polygons"
    TITLE = "Polygons"
    HELP = (
        "Turns a map into polygons that share their edges, with class, area on the ellipsoid, perimeter and, "
        "with the map's confidence, how sure the model was. Lengths and areas are on the ground, in any CRS."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Map"))
        self.addParameter(
            QgsProcessingParameterRasterLayer("CONFIDENCE", "Confidence of the map", optional=True)
        )
        for name, (_, title) in SIZES.items():
            self.addParameter(
                QgsProcessingParameterNumber(
                    name, title, QgsProcessingParameterNumber.Double, defaultValue=0, minValue=0
                )
            )
        self.addParameter(QgsProcessingParameterBoolean("SMOOTH", "Round corners", False))
        self.addParameter(QgsProcessingParameterBoolean("SQUARE", "Square outlines of buildings", False))
        self.add_options("vectorize")
        self.addParameter(
            QgsProcessingParameterVectorDestination("OUTPUT", "Polygons", QgsProcessing.TypeVectorPolygon)
        )

    def processAlgorithm(self, parameters, context, feedback) -> dict[str, Any]:
        output = self.destination(parameters, "OUTPUT", context)
        arguments = ["vectorize", self.raster(parameters, "INPUT", context), "-o", output, "--overwrite"]
        arguments += given("--confidence", self.raster(parameters, "CONFIDENCE", context))
        for name, (flag, _) in SIZES.items():
            arguments += given(flag, self.parameterAsDouble(parameters, name, context))
        if self.parameterAsBool(parameters, "SMOOTH", context):
            arguments.append("--smooth")
        if self.parameterAsBool(parameters, "SQUARE", context):
            arguments.append("--regularize")
        if not output.lower().endswith(".gpkg"):  # which carries its style
            arguments.append("--qml")
        result = self.run_rsseg([*arguments, *self.options(parameters, context)], feedback)
        feedback.pushInfo(f"{result['features']} features")
        return {"OUTPUT": output}
