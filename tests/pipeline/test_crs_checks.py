"""CRS that lead nowhere: refused before a tile is mapped where polygons need them, and mapped where not."""

from __future__ import annotations

import pytest
from networks import one_hot

from rsseg_cli import VectorConfig, predict
from rsseg_cli.errors import UsageError

NOWHERE = {
    "site": 'LOCAL_CS["site grid",UNIT["metre",1]]',
    "engineering": 'ENGCRS["works",EDATUM["x"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],'
    'LENGTHUNIT["metre",1]]',
    "vertical": "EPSG:5703",
    "Moon": "IAU_2015:30100",
}
TO_DEGREES = VectorConfig(dst_crs="EPSG:4326")


@pytest.mark.parametrize("kind", NOWHERE)
@pytest.mark.parametrize(("vector", "config"), [("p.geojson", VectorConfig()), ("p.gpkg", TO_DEGREES)])
def test_polygons_that_cannot_be_transformed_are_refused_first(make_raster, tmp_path, kind, vector, config):
    scene, tiles = make_raster(crs=NOWHERE[kind]), []

    def run(**more):
        return predict(
            scene, tmp_path / "map.tif", model=one_hot(), progress=lambda *done: tiles.append(done), **more
        )

    with pytest.raises(UsageError, match=r"scene.tif: its CRS '.*' cannot be transformed to EPSG:4326\. Geo"):
        run(vector=tmp_path / vector, vector_config=config)
    assert tiles == []
    assert {path.name for path in tmp_path.iterdir()} <= {"scene.tif", "scene.tif.aux.xml"}
    run(vector=tmp_path / "own.gpkg")
    assert tiles
    assert (tmp_path / "own.gpkg").exists()
