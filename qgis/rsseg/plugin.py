"""The plugin and its Processing provider."""

from __future__ import annotations

from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig, Setting, settingsWatcher
from qgis.core import QgsApplication, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithm import PROGRAM
from .labels import Adapt, Score, Suggest
from .maps import Polygons, Predict, Refine
from .models import Models


class RssegProvider(QgsProcessingProvider):
    def load(self) -> bool:
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        text = "Path of the rsseg program; empty: search PATH, ~/.local/bin and the tools of uv"
        ProcessingConfig.addSetting(
            Setting(self.name(), PROGRAM, text, "", valuetype=Setting.FILE, validator=lambda path: None)
        )
        ProcessingConfig.readSettings()
        settingsWatcher.settingsChanged.connect(self.refreshAlgorithms)
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        settingsWatcher.settingsChanged.disconnect(self.refreshAlgorithms)
        ProcessingConfig.removeSetting(PROGRAM)

    def id(self) -> str:
        return "rsseg"

    def name(self) -> str:
        return "rsseg"

    def longName(self) -> str:
        return "rsseg: land-cover maps and polygons from large scenes"

    def icon(self) -> QIcon:
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def loadAlgorithms(self) -> None:
        for algorithm in (Predict, Refine, Polygons, Score, Adapt, Suggest, Models):
            self.addAlgorithm(algorithm())

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        return ["gpkg", "fgb", "geojson", "shp", "parquet"]

    def supportsNonFileBasedOutput(self) -> bool:
        return False


class RssegPlugin:
    def initProcessing(self) -> None:
        self.provider = RssegProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        self.initProcessing()

    def unload(self) -> None:
        QgsApplication.processingRegistry().removeProvider(self.provider)
