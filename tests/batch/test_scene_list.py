"""Which scenes a batch's arguments name."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsseg_cli.batch.manifest import Manifest, read_manifest
from rsseg_cli.batch.scenes import BatchScene, list_scenes, read_items
from rsseg_cli.errors import DataError, OutputError, UsageError
from rsseg_cli.raster import SceneInfo


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def item(name, **assets):
    made = {key: {"href": href, "roles": roles} for key, (href, roles) in assets.items()}
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "assets": made}


def collection(path, *items):
    Path(path).write_text(json.dumps({"type": "FeatureCollection", "features": items}), encoding="utf-8")
    return Path(path)


def test_addresses_and_odd_names_are_taken_as_they_are(here):
    Path("a[1].tif").write_text("")
    Path("@home.tif").write_text("")
    named = [
        "a[1].tif",
        "@home.tif",
        "s3://bucket/x/b.tif",
        "/vsicurl/https://x.org/c.tif?key=1/2",
        "gone.tif",
    ]
    scenes = list_scenes(named)
    assert [scene.path for scene in scenes] == named
    assert [scene.stem for scene in scenes] == ["a[1]", "@home", "b", "c", "gone"]
    assert scenes[2].folder == os.path.join("bucket", "x")


def test_a_list_has_a_path_a_line(here):
    Path("list.txt").write_bytes(
        b"\xef\xbb\xbf# sheets\r\na b.tif\r\n\r\n\xff.tif\n-\n  c.tif \t\r\n d.tif\n"
    )
    Path(" d.tif").write_text("")
    paths = [scene.path for scene in list_scenes(["@list.txt"])]
    assert paths == ["a b.tif", os.fsdecode(b"\xff.tif"), "-", "c.tif", " d.tif"]
    assert [scene.path for scene in list_scenes(["-"], stdin=[b"a\nb.tif\0", b"c.tif\0"])] == [
        "a\nb.tif",
        "c.tif",
    ]
    with pytest.raises(UsageError, match="names no scene"):
        list_scenes(["-"], stdin=[b"\n# none\n"])


def test_a_folder_gives_its_rasters_but_not_the_outputs(here):
    for name in (
        "s/b.TIF",
        "s/a.tif",
        "s/in/c.jp2",
        "s/notes.txt",
        "s/.work/d.tif",
        "s/maps/a_landcover.tif",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    scenes = list_scenes(["s"], target=Path("s/maps"))
    assert scenes == [
        BatchScene(path=os.path.join("s", "a.tif"), stem="a"),
        BatchScene(path=os.path.join("s", "b.TIF"), stem="b"),
        BatchScene(path=os.path.join("s", "in", "c.jp2"), stem="c", folder="in"),
    ]
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="empty: holds no scene"):
        list_scenes(["empty"])


def test_stac_assets_by_name_or_role(here):
    Path("sub").mkdir()
    Path("sub/100%41.tif").write_text("")
    path = collection(
        "sub/items.json",
        item("spaces", data=("so%20uth/s%201.tif", [])),
        item("as it is", data=("100%41.tif", [])),
        item("north", visual=("north/v.tif", ["visual"]), thumb=("t.png", ["thumbnail"])),
        item("so/uth", B04=("https://x.org/r.tif?sig=1", ["data"]), thumb=("t.png", ["thumbnail"])),
        item("one", image=("file:///data/o%20ne.tif", [])),
    )
    assert [(scene.path, scene.stem) for scene in read_items(path)] == [
        (os.path.join("sub", "so uth/s 1.tif"), "spaces"),
        (os.path.join("sub", "100%41.tif"), "as it is"),
        (os.path.join("sub", "north/v.tif"), "north"),
        ("https://x.org/r.tif?sig=1", "so_uth"),
        ("/data/o ne.tif", "one"),
    ]
    first = collection("first.json", item("a", x=("x.tif", ["data"]), y=("y.tif", ["data"])))
    assert [scene.path for scene in list_scenes(["first.json"], asset="y")] == ["y.tif"]
    assert [scene.stem for scene in list_scenes(["first.json"], asset="y")] == ["a"]
    with pytest.raises(UsageError, match="'x', 'y' have the role 'data'; pass --asset NAME"):
        list(read_items(first))
    with pytest.raises(UsageError, match="no asset of name or role 'z'; it has 'x', 'y'"):
        list(read_items(first, "z"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "needs a STAC ItemCollection"),
        ('{"type": "Catalog", "links": []}', "save the items of a search"),
        ('{"type": "FeatureCollection", "features": []}', "holds no items"),
        (
            '{"type": "FeatureCollection", "features": [1]}',
            r"Expected `object`, got `int` - at `\$\[0\]`; needs a STAC",
        ),
        ('{"type": "Feature", "id": "a", "assets": {"x": {"href": 1}}}', "Expected `str`, got `int`.*href"),
        ('{"type": "Feature", "id": "a", "assets": {"x": {"href": "a%00b"}}}', "its asset 'x' has no href"),
        ('{"type": "Feature", "id": 7, "assets": {}}', "Expected `str`, got `int`.*id"),
    ],
)
def test_what_is_no_collection_is_reported(here, text, message):
    Path("items.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_items(Path("items.json")))


def test_a_manifest_outlives_a_cut_line(here):
    path = Path("run.jsonl")
    with Manifest(path) as manifest:
        manifest.add({"input": "a", "status": "started"})
        manifest.add({"input": "a", "status": "done"})
        manifest.add({"input": "b", "status": "started"})
    whole = path.read_bytes()
    for end in range(len(whole.splitlines(keepends=True)[0]), len(whole) + 1):
        path.write_bytes(whole[:end])
        records = read_manifest(path)
        assert records["a"]["status"] == ("done" if whole[:end].count(b"\n") > 1 else "started")
    path.write_bytes(whole[:-5])
    with Manifest(path) as manifest:
        assert set(manifest.records) == {"a"}
        manifest.add({"input": "c", "status": "failed"})
    assert {name: record["status"] for name, record in read_manifest(path).items()} == {
        "a": "done",
        "c": "failed",
    }
    path.write_bytes(whole + b"\0" * 50)  # as after a power cut
    assert set(read_manifest(path)) == {"a", "b"}


@pytest.mark.parametrize(
    "text", [b"x,y\n1,2\n", b"no line end", b'{"input": 3, "status": "done"}\n', b"[]\n"]
)
def test_other_files_are_no_manifest(here, text):
    Path("other").write_bytes(text)
    with pytest.raises(DataError, match="other: line 1 is not a record of a batch"):
        Manifest(Path("other"))
    assert Path("other").read_bytes() == text


def test_stac_assets_of_one_band_are_joined(here, make_raster):
    """By their names, or by the common names that the item states."""
    for name in ("B02", "B03", "B04"):
        make_raster(f"{name}.tif", bands=1, dtype="uint16")
    bands = {"B02": "blue", "B03": "green", "B04": "red"}
    stated = item("a", **{name: (f"{name}.tif", ["data"]) for name in bands})
    for name, colour in bands.items():
        stated["assets"][name]["eo:bands"] = [{"name": name, "common_name": colour}]
    collection("items.json", stated)
    for asset in ("red,green,blue", "B04, B03, B02"):
        (scene,) = list_scenes(["items.json"], asset=asset, target=Path("maps"))
        assert (scene.path, scene.stem) == (os.path.join("maps", "a.vrt"), "a")
        info = SceneInfo.of(scene.path)
        assert info.select_bands(("red", "green", "blue")) == (1, 2, 3)
        assert info.notes == []
        assert [Path(file).name for file in info.files[1:]] == ["B04.tif", "B03.tif", "B02.tif"]
    with pytest.raises(UsageError, match="NAME,NAME,NAME to join assets"):
        list_scenes(["items.json"], target=Path("maps"))
    Path("maps/a.vrt").write_text("mine")
    with pytest.raises(OutputError, match="not a VRT of assets"):
        list_scenes(["items.json"], asset="B04,B03,B02", target=Path("maps"))


def test_stac_bands_of_one_asset_have_their_colours(here, make_raster):
    make_raster("analytic.tif", bands=4, dtype="uint16")
    stated = item("a", analytic=("analytic.tif", ["data"]))
    colours = ["blue", "green", "red", "nir"]
    stated["assets"]["analytic"]["eo:bands"] = [{"common_name": colour} for colour in colours]
    collection("items.json", stated)
    (scene,) = list_scenes(["items.json"], target=Path("maps"))
    assert SceneInfo.of(scene.path).select_bands(("red", "green", "blue")) == (3, 2, 1)


def test_a_product_folder_is_one_scene(here):
    for name in ("in/S2A_1.SAFE/GRANULE/IMG_DATA/R10m/x_B02_10m.jp2", "in/plain.tif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    assert [scene.stem for scene in list_scenes(["in"])] == ["S2A_1", "plain"]
    (scene,) = list_scenes(["in/S2A_1.SAFE"])
    assert scene.path == "in/S2A_1.SAFE"


@pytest.mark.parametrize("mark", ["s.zarr/.zgroup", "s.gdb/gdb", "s/hdr.adf"])
def test_a_folder_that_gdal_opens_is_one_scene(here, mark):
    Path(mark).parent.mkdir()
    Path(mark).write_text("")
    (scene,) = list_scenes([str(Path(mark).parent)])
    assert scene.stem == "s"


TABLES = {
    "double quotes": b'"a b.tif"\n"c.tif"\n',
    "single quotes": b"'a b.tif'\n'c.tif'\n",
    "semicolons": b"path;date\na b.tif;2024-05-01\nc.tif;2024-05-02\n",
    "tabs": b"date\tFile\r\n2024\ta b.tif\r\n2025\tc.tif\r\n",
    "commas and quotes": b'id,"image"\n1,"a b.tif"\n2,"c.tif"\n',
    "no head": b"a b.tif;2024;x\nc.tif;2025;y\n",
    "no head, path last": b"1,a b.tif\n2,c.tif\n",
    "one column with a head": b"filename\na b.tif\nc.tif\n",
    "UTF-8 mark": b"\xef\xbb\xbfpath;n\na b.tif;1\nc.tif;2\n",
    "UTF-16": "path;n\r\na b.tif;1\r\nc.tif;2\r\n".encode("utf-16"),
    "UTF-16, big end first": "\ufeffa b.tif\nc.tif\n".encode("utf-16-be"),
    "comment and empty lines": b"# list\n\npath;n\n\na b.tif;1\nc.tif;2\n;3\n",
    "quoted separator": b'path;n\n"a b.tif";"1;2"\n"c.tif";3\n',
}


@pytest.mark.parametrize("exist", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_lists_may_be_tables_and_have_quotes(here, kind, exist):
    if exist:
        Path("a b.tif").write_text("")
        Path("c.tif").write_text("")
    Path("list.csv").write_bytes(TABLES[kind])
    assert [scene.path for scene in list_scenes(["@list.csv"])] == ["a b.tif", "c.tif"]
    assert [scene.path for scene in list_scenes(["-"], stdin=[TABLES[kind]])] == ["a b.tif", "c.tif"]


def test_a_file_may_be_named_like_a_line_of_a_table(here):
    names = ["a;b.tif", "path", "x,y.tif", "'q.tif'"]
    names += ["s3://b/a,b.tif", "https://x.org/a.tif?s=1;2,3", 'NETCDF:"a.nc":red']
    for name in names[:4]:
        Path(name).write_text("")
    Path("list.txt").write_text("\n".join(names))
    assert [scene.path for scene in list_scenes(["@list.txt"])] == names


def test_a_table_without_a_path_in_a_row_is_reported(here):
    Path("list.csv").write_text("date;path\n2024;a.tif\n2025\n")
    with pytest.raises(DataError, match=r"list\.csv: row 3 has no cell 'path'"):
        list_scenes(["@list.csv"])
    with pytest.raises(UsageError, match=r"list\.csv: is no raster; if it lists scenes, pass @list\.csv"):
        list_scenes(["list.csv", "b.tif"])


def test_names_of_parts_name_the_outputs(here):
    named = {
        'NETCDF:"in/a.nc":red': "a_red",
        "NETCDF:in/a.nc:red": "a_red",
        'HDF5:"in/b.h5"://group/red': "b_group_red",
        "SENTINEL2_L2A:in/MTD_MSIL2A.xml:10m:EPSG_32632": "MTD_MSIL2A_10m_EPSG_32632",
        "/vsizip/in/a.zip/b.tif": "b",
        "https://x.org/c.tif?sig=1/2": "c",
        "in/d.e.tif": "d.e",
    }
    scenes = list_scenes(list(named))
    assert [scene.path for scene in scenes] == list(named)
    assert [scene.stem for scene in scenes] == list(named.values())


def test_a_folder_that_is_a_raster_is_a_scene(here):
    profile = {"driver": "Zarr", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
    for name in ("in/s.zarr", "in/plain_name"):
        Path(name).parent.mkdir(exist_ok=True)
        with rasterio.open(name, "w", **profile) as dataset:
            dataset.write(np.ones((1, 8, 8), np.uint8))
    Path("in/b.tif").write_text("")
    assert [scene.stem for scene in list_scenes(["in"])] == ["plain_name", "s", "b"]
    assert [(scene.path, scene.stem) for scene in list_scenes(["in/plain_name"])] == [
        ("in/plain_name", "plain_name")
    ]


def test_joined_assets_are_written_again_only_where_they_changed(here, make_raster):
    for name in ("B03", "B04"):
        make_raster(f"{name}.tif", bands=1)
    collection("items.json", item("a", B03=("B03.tif", []), B04=("B04.tif", [])))
    (scene,) = list_scenes(["items.json"], asset="B04,B03", target=Path("maps"))
    os.utime(scene.path, ns=(1, 1))
    list_scenes(["items.json"], asset="B04,B03", target=Path("maps"))
    assert os.stat(scene.path).st_mtime_ns == 1
    list_scenes(["items.json"], asset="B03,B04", target=Path("maps"))
    assert os.stat(scene.path).st_mtime_ns > 1
