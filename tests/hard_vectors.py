"""Bad and odd vector files, `aoi.geojson`, and label rasters, `labels.tif`, beside a good `scene.tif`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hard_scenes import LOCAL_CRS, noise, plain, write
from rasterio.crs import CRS

X, Y = 500000.0, 5000000.0  # the scene's upper left corner; it is 24 m wide
SQUARE = [[X + 2, Y - 2], [X + 12, Y - 2], [X + 12, Y - 12], [X + 2, Y - 12], [X + 2, Y - 2]]
BOWTIE = [[X + 2, Y - 2], [X + 12, Y - 12], [X + 12, Y - 2], [X + 2, Y - 12], [X + 2, Y - 2]]
UTM_NAME = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}


def collection(*geometries: Any, crs: Any = UTM_NAME) -> str:
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def aoi(text: str | bytes, name: str = "aoi.geojson", **scene: Any):
    def make(folder: Path) -> None:
        plain(folder, **scene)
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(data)

    return make


def labels(array: np.ndarray, **profile: Any):
    def make(folder: Path) -> None:
        plain(folder)
        write(folder / "labels.tif", array, **profile)

    return make


def classes(shape: tuple[int, int] = (48, 48), dtype: str = "uint8") -> np.ndarray:
    return (noise(1, shape) % 3).astype(dtype)


def with_one(value: float) -> np.ndarray:
    array = classes(dtype="float32")
    array[0, 3] = value
    return array


def named_by_control_characters(folder: Path) -> None:
    """Category names that are no XML."""
    labels(classes())(folder)
    items = "".join(f"<Category>{name}</Category>" for name in ("roof\x01", "ro\x0bad", "tree"))
    (folder / "labels.tif.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{items}</CategoryNames></PAMRasterBand>'
        "</PAMDataset>"
    )


OTHER_CRS = CRS.from_epsg(3035)
SITE = CRS.from_wkt(LOCAL_CRS)
