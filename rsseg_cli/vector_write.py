"""Polygons to a vector file: batch by batch, and under its name once it is whole."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from rsseg_cli.errors import OutputError
from rsseg_cli.vector_convert import ParquetFile, convert
from rsseg_cli.vector_dissolve import Dissolver
from rsseg_cli.vector_geopackage import GeoPackage
from rsseg_cli.vector_layer import Layer, columns_of, targets
from rsseg_cli.vector_polygons import Polygons
from rsseg_cli.vector_style import make_qml

GROUP = 40_000  # polygons of a Parquet group
GROUP_BYTES = 48 << 20
STORE = ".store.gpkg"  # in the scratch folder: polygons for a format that is not appended to


class VectorWriter:
    """Takes polygons in order; used as a context manager, which removes what was not published.

    GeoPackages and Parquet files are appended to, the other formats are made from a temporary GeoPackage.
    Memory: a batch of polygons; large ones are copied from file to file.

    Args:
        scratch: folder for what is temporary, made anew and left to the caller; one of its own by default.
    """

    def __init__(self, layer: Layer, scratch: Path | None = None) -> None:
        self.layer = layer
        self._given = scratch
        self.features = 0
        self._folder: Path | None = None
        self._file: GeoPackage | ParquetFile | None = None
        self._dissolver: Dissolver | None = None
        self._waiting: list[Polygons] = []

    def __enter__(self) -> Self:
        layer = self.layer
        try:
            if self._given is not None:
                shutil.rmtree(self._given, ignore_errors=True)
                self._given.mkdir()
            self._folder = self._given or Path(
                tempfile.mkdtemp(prefix=f".{layer.path.name}.", suffix=".tmp", dir=layer.path.parent)
            )
            if layer.dissolve:
                self._dissolver = Dissolver(self._folder)
        except OSError as err:
            raise OutputError(f"{layer.path}: cannot be written ({err})") from err
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._folder is not None and self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """A folder beside the target that goes with the writer."""
        if self._folder is None:
            raise ValueError("the writer is not open")
        return self._folder

    def write(self, polygons: Polygons) -> None:
        """Write the next polygons.

        Raises:
            OutputError: the disk is full.
        """
        if self._dissolver is not None:
            self._dissolver.add(polygons)
            return
        self._append(polygons)

    def _append(self, polygons: Polygons) -> None:
        self.features += len(polygons)
        if self.layer.format != "GeoParquet":
            self._append_geopackage(polygons)
            return
        self._waiting.append(polygons)
        waiting = [len(blob) for part in self._waiting for blob in part.wkb]
        if len(waiting) >= GROUP or sum(waiting) >= GROUP_BYTES:
            self._append_group()

    def _append_geopackage(self, polygons: Polygons | None) -> None:
        try:
            if self._file is None:
                self._file = self._new_geopackage()
            if polygons is not None and isinstance(self._file, GeoPackage):
                self._file.append(polygons.wkb, polygons.boxes, columns_of(polygons, self.layer))
        except sqlite3.Error as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err}). Is the disk full?") from err

    @property
    def _store(self) -> Path:
        """The GeoPackage that is written."""
        return self.scratch / (self.layer.path.name if self.layer.format == "GPKG" else STORE)

    def _new_geopackage(self) -> GeoPackage:
        layer = self.layer
        return GeoPackage(
            self._store,
            layer.name,
            geometry=layer.geometry.upper(),
            crs=layer.crs,
            fields=layer.fields,
            metadata=layer.metadata,
            indexed=layer.format == "GPKG",
        )

    def _append_group(self) -> None:
        waiting, self._waiting = self._waiting, []
        columns = [columns_of(part, self.layer) for part in (waiting or (None,))]
        if not isinstance(self._file, ParquetFile):
            self._file = ParquetFile(self.scratch / self.layer.path.name, self.layer)
        self._file.append(
            np.concatenate([np.zeros(0, object), *(part.wkb for part in waiting)]),
            {name: np.concatenate([part[name] for part in columns]) for name in columns[0]},
        )

    def finish(self) -> dict[Path, Path]:
        """Complete the file; temporary file -> its name, the main file last.

        Raises:
            OutputError: the format cannot hold the polygons, or the disk is full.
        """
        layer = self.layer
        if self._dissolver is not None:
            for polygons in self._dissolver.finish():
                self._append(polygons)
        if layer.format == "GeoParquet":
            self._finish_parquet()
        else:
            self._finish_geopackage()
            if layer.format != "GPKG":
                convert(self._store, self.scratch / layer.path.name, layer, self.features)
        if layer.qml:
            text = make_qml(layer.names, layer.colours, layer.columns[0])
            (self.scratch / f"{layer.path.stem}.qml").write_text(text, encoding="utf-8")
        found = [
            (self.scratch / path.name, path) for path in targets(layer.path, layer.format, qml=layer.qml)
        ]
        found.sort(key=lambda names: names[1] == layer.path)
        return {file: path for file, path in found if file.exists()}

    def _finish_parquet(self) -> None:
        if self._waiting or self._file is None:
            self._append_group()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _finish_geopackage(self) -> None:
        self._append_geopackage(None)
        try:
            if isinstance(self._file, GeoPackage):
                self._file.finish(make_qml(self.layer.names, self.layer.colours))
        except (sqlite3.Error, OSError) as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err}). Is the disk full?") from err
