"""Bands by what files say of them: names, wavelengths, sensors' numbers; and bands called alpha."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasters import MakeRaster

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import SceneInfo, SceneReader
from rsseg_cli.raster.band_names import colour_of

RGB = ("red", "green", "blue")
NAMES = {
    "Sentinel-2": (("B02", "B03", "B04"), (3, 2, 1)),
    "Sentinel-2, all of 10 m": (("B2", "B3", "B4", "B8"), (3, 2, 1)),
    "Sentinel-2 in products": (("T32_2020_B02_10m", "T32_2020_B03_10m", "T32_2020_B04_10m"), (3, 2, 1)),
    "Sentinel-2 by GDAL": (("B4, central wavelength 665 nm", "B3, central wavelength 560 nm",
                            "B2, central wavelength 490 nm"), (1, 2, 3)),
    "Landsat 8": (("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7"), (4, 3, 2)),
    "Landsat 7": (("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"), (3, 2, 1)),
    "Landsat 7 as a picture": (("B3", "B2", "B1"), (1, 2, 3)),
    "MODIS": (("sur_refl_b01", "sur_refl_b02", "sur_refl_b03", "sur_refl_b04"), (1, 4, 3)),
    "words": (("blue", "green", "red"), (3, 2, 1)),
    "words and wavelengths": (("Blue (490 nm)", "Green (560 nm)", "Red (665 nm)", "Red edge"), (3, 2, 1)),
    "words in names": (("blue_reflectance", "green_reflectance", "red_reflectance"), (3, 2, 1)),
    "numbers and words": (("Band 1: coastal", "Band 2: blue", "Band 3: green", "Band 4: red"), (4, 3, 2)),
    "PlanetScope": (("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge"), (6, 4, 2)),
    "WorldView": (("Coastal", "Blue", "Green", "Yellow", "Red", "RedEdge", "NIR1", "NIR2"), (5, 3, 2)),
    "MicaSense": (("Coastal-444", "Blue-475", "Green-531", "Green", "Red-650", "Red"), (6, 4, 2)),
    "letters": (("B", "G", "R", "N"), (3, 2, 1)),
    "camel case": (("BlueReflectance", "GreenReflectance", "RedReflectance"), (3, 2, 1)),
    "nanometres": (("490 nm", "560 nm", "665 nm", "842 nm"), (3, 2, 1)),
    "micrometres": (("0.49 um", "0.56 um", "0.665 um"), (3, 2, 1)),
    "ranges": (("450-515 nm", "525-600 nm", "630-680 nm"), (3, 2, 1)),
    "French": (("bleu", "vert", "rouge"), (3, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_bands_in_any_order_are_told_by_their_names(make_raster: MakeRaster, kind: str) -> None:
    names, expected = NAMES[kind]
    info = SceneInfo.of(make_raster(bands=len(names), descriptions=names, dtype="uint16"))
    assert info.select_bands(RGB) == expected
    assert info.notes == []


def test_names_come_before_the_colours_of_three_bytes(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(descriptions=("B02", "B03", "B04")))
    assert info.colour_interpretations == RGB  # GDAL says so of any three bytes
    assert info.select_bands(RGB) == (3, 2, 1)


def test_near_infrared_by_sensor(make_raster: MakeRaster) -> None:
    wanted = (*RGB, "nir")
    sentinel = ("B02", "B03", "B04", "B05", "B08", "B8A")
    landsat = ("SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6")
    assert SceneInfo.of(make_raster(bands=6, descriptions=sentinel)).select_bands(wanted) == (3, 2, 1, 5)
    assert SceneInfo.of(make_raster(bands=5, descriptions=landsat)).select_bands(wanted) == (3, 2, 1, 4)


@pytest.mark.parametrize(
    ("units", "values"), [("Nanometers", "490,560,665,842"), ("Micrometers", ".49,.56,.665,.842"),
                          ("", "490,560,665,842")]
)  # fmt: skip
def test_wavelengths_of_envi_headers(make_raster: MakeRaster, units: str, values: str) -> None:
    path = make_raster("scene.img", bands=4, dtype="uint16", driver="ENVI")
    header = path.with_suffix(".hdr")
    text = header.read_text().partition("band names")[0]
    units = f"wavelength units = {units}\n" if units else ""
    header.write_text(f"{text}\n{units}wavelength = {{{values}}}\n")
    info = SceneInfo.of(path)
    assert info.select_bands((*RGB, "nir")) == (3, 2, 1, 4)
    assert info.notes == []


def test_hyperspectral_bands_nearest_to_a_colour_are_taken(make_raster: MakeRaster) -> None:
    waves = range(400, 1000, 10)
    names = tuple(f"{wave} Nanometers" for wave in waves)
    info = SceneInfo.of(make_raster(bands=len(names), descriptions=names, dtype="uint16", shape=(8, 8)))
    chosen = info.select_bands(RGB)
    assert [waves[band - 1] for band in chosen] == [660, 560, 480]


@pytest.mark.parametrize("namespace", [None, "IMAGERY"])
def test_metadata_of_bands(make_raster: MakeRaster, namespace: str | None) -> None:
    path = make_raster(dtype="uint16")
    waves = ("0.490", "0.560", "0.665")
    with rasterio.open(path, "r+") as dataset:
        for band, (name, wave) in enumerate(zip(("blue", "green", "red"), waves, strict=True), 1):
            tags = {"eo:common_name": name} if namespace is None else {"CENTRAL_WAVELENGTH_UM": wave}
            dataset.update_tags(band, ns=namespace, **tags)
    info = SceneInfo.of(path)
    assert info.select_bands(RGB) == (3, 2, 1)
    assert info.notes == []


def test_stac_bands_in_a_tag(make_raster: MakeRaster) -> None:
    path = make_raster(dtype="uint16")
    bands = [{"name": name, "eo:common_name": name} for name in ("green", "red", "blue")]
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**{"eo:bands": json.dumps(bands)})
    assert SceneInfo.of(path).select_bands(RGB) == (2, 1, 3)


def test_what_stays_a_guess_is_noted(make_raster: MakeRaster) -> None:
    plain = SceneInfo.of(make_raster(dtype="uint16"))
    assert plain.select_bands(RGB) == (1, 2, 3)
    assert plain.notes == [
        f"{plain.name}: does not name its bands; bands 1, 2, 3 are taken as red, green, blue; pass --bidx if "
        "they are others"
    ]
    infrared = SceneInfo.of(make_raster(descriptions=("nir", "red", "green"), dtype="uint16"))
    assert infrared.select_bands(RGB) == (1, 2, 3)
    assert "calls its bands nir, red, green; bands 1, 2, 3 are taken as red, green" in infrared.notes[0]
    numbered = SceneInfo.of(make_raster(descriptions=("B1", "B2", "B3"), dtype="uint16"))
    assert numbered.select_bands(RGB) == (1, 2, 3)
    assert len(numbered.notes) == 1
    several = SceneInfo.of(make_raster(bands=7, descriptions=tuple(f"B{n}" for n in range(1, 8))))
    assert several.select_bands(RGB) == (4, 3, 2)
    assert "as Landsat 8 numbers them" in several.notes[0]
    assert several.select_bands(RGB, (1, 2, 3)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "colour"),
    [("Red edge 1", "rededge"), ("near-infrared", "nir"), ("shortwave infrared", "swir16"), ("red_qa", ""),
     ("ndvi", ""), ("red/nir ratio", ""), ("thermal infrared", "thermal"), ("infrared", "nir"),
     ("rededge2", "rededge"), ("nbart_red_1", "red"), ("ultra-blue", "coastal"), ("NIR 2", "nir09"),
     ("credit", ""),
     ("Surface reflectance, RED", "red"), ("Green I", "green i"), ("", "")],
)  # fmt: skip
def test_colours_in_names(text: str, colour: str) -> None:
    assert colour_of(text) == colour


# --- bands called alpha


def near_infrared(height: int = 64, width: int = 64) -> np.ndarray:
    """Four bytes a pixel, near-infrared last, which is 0 over water on the left."""
    array = np.random.default_rng(0).integers(1, 255, (4, height, width)).astype(np.uint8)
    array[3, :, : width // 4] = 0
    return array


@pytest.mark.parametrize("wanted", [RGB, (*RGB, "nir")], ids=["3", "4"])
@pytest.mark.parametrize("bidx", [None, "given"])
def test_near_infrared_that_is_called_alpha_is_data(make_raster: MakeRaster, wanted, bidx) -> None:
    path = make_raster(array=near_infrared())
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    info = SceneInfo.of(path)
    bands = info.select_bands(wanted, None if bidx is None else tuple(range(1, len(wanted) + 1)))
    assert bands == tuple(range(1, len(wanted) + 1))
    with SceneReader(info, bands) as reader:
        assert reader.read(0, 0, 64, 64)[1].all()
    assert "band 4 is called alpha but has 2" in info.notes[0]
    assert "--alpha mask" in info.notes[0]


def test_the_option_says_what_alpha_is(make_raster: MakeRaster) -> None:
    path = make_raster(array=near_infrared())
    info = SceneInfo.of(path, alpha="mask")
    with SceneReader(info, info.select_bands(RGB)) as reader:
        assert not reader.read(0, 0, 64, 16)[1].any()
    assert info.notes == []
    mask = SceneInfo.of(make_raster("mask.tif", kind="alpha"), alpha="data")
    assert not mask.has_mask
    assert mask.select_bands((*RGB, "nir")) == (1, 2, 3, 4)


@pytest.mark.parametrize("soft", [False, True])
def test_alpha_that_marks_pixels_stays_a_mask(make_raster: MakeRaster, soft: bool) -> None:
    array = np.random.default_rng(0).integers(1, 255, (4, 200, 200)).astype(np.uint8)
    array[3] = 255
    array[3, :, :50] = 0
    if soft:
        array[3, :, 50:60] = np.arange(10) * 25  # an edge that fades
    info = SceneInfo.of(make_raster(array=array))
    assert info.colour_interpretations[3] == "alpha"
    with SceneReader(info, (1, 2, 3)) as reader:
        assert not reader.read(0, 0, 200, 50)[1].any()
    assert info.notes == []


def test_a_large_scene_is_judged_by_parts_of_it(make_raster: MakeRaster) -> None:
    array = np.tile(near_infrared(256, 256), (1, 6, 6))
    info = SceneInfo.of(make_raster(array=array, tiled=True, blockxsize=256, blockysize=256))
    assert info.colour_interpretations[3] == "undefined"


def test_one_band_a_file_says_how_to_join(make_raster: MakeRaster, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"gdalbuildvrt -separate scene\.vrt RED\.tif GREEN\.tif BLUE\.tif"):
        SceneInfo.of(make_raster(bands=1)).select_bands(RGB)


def test_files_joined_by_gdalbuildvrt_keep_their_names(make_raster: MakeRaster, tmp_path: Path) -> None:
    """gdalbuildvrt -separate writes no names; files are often given in the order of their numbers."""
    names = ("T32_B02_10m", "T32_B03_10m", "T32_B04_10m")
    for name in names:
        make_raster(f"{name}.tif", bands=1, dtype="uint16")
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{name}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band, name in enumerate(names, 1)
    )
    path = tmp_path / "scene.vrt"
    path.write_text(f'<VRTDataset rasterXSize="80" rasterYSize="60">{bands}</VRTDataset>')
    info = SceneInfo.of(path)
    assert info.select_bands(RGB) == (3, 2, 1)
    assert info.notes == []
