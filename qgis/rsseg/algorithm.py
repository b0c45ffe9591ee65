"""What all algorithms have in common: the run of the program, inputs as paths, results with their styles."""

from __future__ import annotations

import json
import os
import shlex
from typing import Any, ClassVar

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterString,
)

from . import program

PROGRAM = "RSSEG_PROGRAM"  # setting with the program's path


def find_program() -> str:
    return program.find_program(ProcessingConfig.getSetting(PROGRAM) or "")


class _Style(QgsProcessingLayerPostProcessorInterface):
    """Gives a loaded result the style beside it, or in its GeoPackage."""

    waiting: ClassVar[list[_Style]] = []  # QGIS holds no reference to the Python part

    def postProcessLayer(self, layer, context, feedback) -> None:
        layer.loadDefaultStyle()
        layer.triggerRepaint()
        _Style.waiting.remove(self)


class RssegAlgorithm(QgsProcessingAlgorithm):
    """A command of rsseg. Children name it, declare its parameters and turn them into arguments."""

    NAME = TITLE = HELP = ""

    def name(self) -> str:
        return self.NAME

    def displayName(self) -> str:
        return self.TITLE

    def shortHelpString(self) -> str:
        return self.HELP

    def createInstance(self) -> RssegAlgorithm:
        return type(self)()

    def canExecute(self) -> tuple[bool, str]:
        try:
            find_program()
        except program.ProgramError as err:
            return False, str(err)
        return True, ""

    def add_advanced(self, parameter: QgsProcessingParameterDefinition) -> None:
        parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(parameter)

    def add_options(self, command: str) -> None:
        text = f"Further options, as in 'rsseg {command} --help'"
        self.add_advanced(QgsProcessingParameterString("OPTIONS", text, optional=True))

    def options(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[str]:
        text = self.parameterAsString(parameters, "OPTIONS", context)
        try:
            return shlex.split(text)
        except ValueError as err:
            raise QgsProcessingException(f"Further options {text!r}: {err}") from err

    def raster(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> str | None:
        """Path of a raster layer, None where an optional one is not given."""
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            if parameters.get(name):
                raise QgsProcessingException(self.invalidRasterError(parameters, name))
            return None
        if layer.providerType() != "gdal":
            raise QgsProcessingException(
                f"{layer.name()}: a layer of {layer.providerType()}; needs a raster that GDAL reads. Save "
                "the layer as a GeoTIFF first."
            )
        source = layer.source().split("|option:")[0]
        return os.path.abspath(source) if os.path.exists(source) else source

    def vector(
        self,
        parameters: dict[str, Any],
        name: str,
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> str | None:
        """Path of a copy of a vector layer, as it is filtered and edited; None where it is not given."""
        if not parameters.get(name):
            return None
        return self.parameterAsCompatibleSourceLayerPath(parameters, name, context, [], "gpkg", feedback)

    def destination(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> str | None:
        """Path of an output, which is loaded with its style; None where it is not wanted."""
        path = self.parameterAsOutputLayer(parameters, name, context)
        if path and context.willLoadLayerOnCompletion(path):
            _Style.waiting.append(_Style())
            context.layerToLoadOnCompletionDetails(path).setPostProcessor(_Style.waiting[-1])
        return path or None

    def run_rsseg(self, arguments: list[str], feedback: QgsProcessingFeedback) -> Any:
        """What the command prints as JSON."""
        try:
            printed = program.run(find_program(), [*arguments, "--json"], feedback)
            return json.loads(printed)
        except program.ProgramError as err:
            raise QgsProcessingException(str(err)) from err
        except ValueError as err:
            raise QgsProcessingException(f"{find_program()}: is not rsseg, or an earlier version") from err


def given(flag: str, value: object) -> list[str]:
    """An option with its value, nothing where there is none."""
    return [] if value is None or value == "" else [flag, str(value)]
