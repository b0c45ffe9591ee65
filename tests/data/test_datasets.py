"""Scenes found, aligned and cropped: what the network is shown is what lies in the files."""

import json
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from shapely.geometry import box

from rsseg_cli.config import PredictConfig
from rsseg_cli.data.datasets import (
    LabelledScene,
    check_coding,
    class_counts,
    data_table,
    find_scenes,
    ground_resolution,
    open_data,
    read_scene_list,
    unique_names,
)
from rsseg_cli.data.label_format import IGNORE, LabelFormat, read_classes
from rsseg_cli.data.types import DataConfig, LoadedScene
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.pipeline import predict
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel


def spec_at(gsd_m: float, *names: str) -> ModelSpec:
    return ModelSpec(
        name="test",
        architecture="external",
        classes=ClassSpec.from_names(names or ("other", "building")),
        gsd_m=gsd_m,
    )


def write_raster(path, array, *, gsd=0.5, origin=(500000, 5000000), crs="EPSG:32632", nodata=None):
    array = array if array.ndim == 3 else array[None]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=array.shape[2],
        height=array.shape[1],
        count=array.shape[0],
        dtype=array.dtype,
        crs=crs,
        transform=from_origin(*origin, gsd, gsd),
        nodata=nodata,
    ) as dataset:
        dataset.write(array)
    return path


def random_image(height, width, bands=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (bands, height, width), dtype=np.uint8)


def drawn(labels: np.ndarray) -> LoadedScene:
    return LoadedScene("scene", np.zeros((3, *labels.shape), np.uint8), labels, 1.0)


class Recorder(torch.nn.Module):
    """Keeps the image that it is shown."""

    def forward(self, image):
        self.seen = image[0].numpy().copy()
        return torch.zeros(len(image), 2, *image.shape[-2:])


class TestFinding:
    def test_pairs_by_name_with_splits(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        for name in ("a1", "a2", "b1"):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.jpg")
            Image.new("L", (8, 8)).save(tmp_path / "masks" / f"{name}.png")
        actual = find_scenes(tmp_path, val=["a2"], test=["b*"])
        assert [(scene.image.name, scene.labels.name, scene.split) for scene in actual] == [
            ("a1.jpg", "a1.png", "train"),
            ("a2.jpg", "a2.png", "val"),
            ("b1.jpg", "b1.png", "test"),
        ]
        (tmp_path / "masks" / "a1.png").unlink()
        with pytest.raises(DataError, match="no partner: a1"):
            find_scenes(tmp_path)

    def test_list_names_the_line_that_is_wrong(self, tmp_path):
        image = write_raster(tmp_path / "a.tif", random_image(8, 8))
        listed = tmp_path / "scenes.csv"
        listed.write_text("image,labels,split\na.tif,a.tif,val\n")
        assert read_scene_list(listed) == [LabelledScene(image, image, "val")]
        listed.write_text("image,labels,split\na.tif,a.tif,train\na.tif,gone.tif,train\n")
        with pytest.raises(DataError, match=r"line 3: .*gone.tif does not exist"):
            read_scene_list(listed)
        listed.write_text("image,labels,split\na.tif,a.tif,training\n")
        with pytest.raises(DataError, match="line 2: split 'training'"):
            read_scene_list(listed)

    @pytest.mark.parametrize(
        "text",
        [
            'image,labels,split\n"a b.tif","a b.tif","val"\n',
            "image;labels;split\na b.tif;a b.tif;val\n",
            'Image ; Labels ; Split\r\n"a b.tif" ; "a b.tif" ; val\r\n;;\r\n',
            "image\tlabels\tsplit\n'a b.tif'\t'a b.tif'\tval\n",
            "\ufeffimage,labels,split,notes\n'a b.tif', 'a b.tif', val, seen\n\n",
            "split;image;labels\nval;a b.tif;a b.tif;\n",
        ],
        ids=["double quotes", "semicolons", "spaces", "tabs", "single quotes", "order"],
    )
    def test_lists_of_any_separator_and_quotes(self, tmp_path, text):
        image = write_raster(tmp_path / "a b.tif", random_image(8, 8))
        (tmp_path / "scenes.csv").write_bytes(text.encode())
        assert read_scene_list(tmp_path / "scenes.csv") == [LabelledScene(image, image, "val")]

    @pytest.mark.parametrize("text", ["", "image;labels\n", "image labels\na.tif a.tif\n", "x;y\na;b\n"])
    def test_lists_that_name_nothing(self, tmp_path, text):
        (tmp_path / "scenes.csv").write_text(text)
        with pytest.raises(DataError, match=r"no scenes listed|needs the columns image, labels"):
            read_scene_list(tmp_path / "scenes.csv")

    def sheets(self, folder):
        """train/urban/0.tif to 3.tif and val/urban/0.tif to 3.tif, with labels beside them."""
        lines = ["image,labels,split"]
        for k, part in enumerate(("train", "val")):
            path = folder / part / "urban"
            path.mkdir(parents=True)
            for n in range(4):
                write_raster(path / f"{n}.tif", random_image(20, 20, seed=10 * k + n))
                write_raster(path / f"{n}.labels.tif", np.full((20, 20), n % 2, np.uint8))
                lines.append(f"{part}/urban/{n}.tif,{part}/urban/{n}.labels.tif,{('train', 'test')[k]}")
        (folder / "scenes.csv").write_text("\n".join(lines))
        return folder / "scenes.csv"

    def test_scenes_of_the_same_name_stay_in_their_parts(self, tmp_path):
        listed = self.sheets(tmp_path)
        for seed in range(6):
            data = open_data(DataConfig(scenes=(listed,), classes="a,b", seed=seed))
            parts = {scene.image.relative_to(tmp_path).parts[0]: set() for scene in data.sources}
            for scene in data.sources:
                parts[scene.image.relative_to(tmp_path).parts[0]].add(scene.split)
            assert parts == {"train": {"train", "val"}, "val": {"test"}}
            assert len({scene.name for scene in data.sources}) == 8

    def test_the_same_files_in_two_parts_are_warned_of(self, tmp_path, caplog):
        listed = self.sheets(tmp_path)
        open_data(DataConfig(scenes=(listed,), classes="a,b"))
        assert "is listed for" not in caplog.text
        listed.write_text(listed.read_text() + "\ntrain/urban/0.tif,train/urban/0.labels.tif,test")
        open_data(DataConfig(scenes=(listed,), classes="a,b"))
        assert "0.tif: is listed for train and for test; scores will be too good" in caplog.text

    def test_names_that_become_one_as_files_are_made_different(self, tmp_path):
        """The arrays of a scene lie in files that are named after it."""
        image, labels = random_image(20, 20), np.zeros((20, 20), np.uint8)
        long = "x" * 160
        for stem in ("a b", "a_b", "a  b", long + "1", long + "2"):
            write_raster(tmp_path / f"{stem}.tif", image + len(stem) % 2)
            write_raster(tmp_path / f"{stem}.png.tif", labels)
        scenes = [
            LabelledScene(tmp_path / f"{stem}.tif", tmp_path / f"{stem}.png.tif", "train")
            for stem in ("a b", "a_b", "a  b", long + "1", long + "2")
        ]
        loaded = [scene.load(spec_at(0.5), tmp_path / "kept") for scene in unique_names(scenes)]
        files = [path.name for path in (tmp_path / "kept").glob("*.image")]
        assert len(set(files)) == len(loaded) == 5


class TestLoading:
    def test_ground_resolution_of_the_first_training_scene(self, tmp_path):
        held = LabelledScene(tmp_path / "none.tif", tmp_path / "none.tif", "val")
        first = LabelledScene(
            write_raster(tmp_path / "image.tif", random_image(8, 8), gsd=0.25), held.labels, "train"
        )
        assert ground_resolution([held, first]) == pytest.approx(0.25, rel=1e-3)
        Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
        assert ground_resolution([LabelledScene(tmp_path / "image.png", held.labels, "train")]) is None

    def test_at_the_scenes_own_resolution_nothing_changes(self, tmp_path):
        image, labels = random_image(40, 60), random_image(40, 60, 1)[0] % 2
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        got = scene.load(spec_at(0.5), None)
        np.testing.assert_array_equal(got.image, image)
        np.testing.assert_array_equal(got.labels, labels)
        assert got.gsd_m == pytest.approx(0.5, rel=1e-3)

    def test_coarser_training_takes_the_most_frequent_label(self, tmp_path):
        labels = np.zeros((40, 40), np.uint8)
        labels[:, 21:] = 1  # a column short of half: its 2 x 2 pixels are half 0, half 1 nowhere
        labels[:2, :2] = [[1, 1], [1, 0]]
        image = np.repeat(labels[None] * 100, 3, 0)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        got = scene.load(spec_at(1.0), None)
        assert got.labels.shape == (20, 20)
        assert got.labels[0, 0] == 1
        assert (got.labels[:, :10][1:] == 0).all()
        assert (got.labels[:, 11:] == 1).all()

    def test_finer_than_the_model_only_as_far_as_the_scene_goes(self, tmp_path):
        image, labels = random_image(40, 60), np.zeros((40, 60), np.uint8)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        assert scene.load(spec_at(2.0), None, finest_gsd_m=1.0).labels.shape == (20, 30)
        assert scene.load(spec_at(1.0), None, finest_gsd_m=0.1).labels.shape == (40, 60)

    def test_labels_on_another_grid_are_aligned(self, tmp_path):
        """Labels of a smaller area, at twice the pixel size, land where the ground says."""
        image = random_image(40, 40)
        labels = np.ones((10, 10), np.uint8)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels, gsd=1.0, origin=(500005, 4999995), nodata=255),
            "train",
        )
        got = scene.load(spec_at(0.5), None)
        assert got.labels.shape == (20, 20)  # the labelled part alone is kept
        np.testing.assert_array_equal(got.image, image[:, 10:30, 10:30])

    def test_an_unknown_label_stops_with_file_and_value(self, tmp_path):
        labels = np.full((20, 20), 7, np.uint8)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", random_image(20, 20)),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        with pytest.raises(DataError, match=r"labels.tif: label value 7 is no class"):
            scene.load(spec_at(0.5), None)

    def test_other_size_without_crs_is_refused(self, tmp_path):
        Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
        Image.new("L", (20, 20)).save(tmp_path / "mask.png")
        with pytest.raises(DataError, match="20 x 20 px without CRS"):
            LabelledScene(tmp_path / "image.png", tmp_path / "mask.png", "train").load(spec_at(1.0), None)


def write_pairs(folder, names, *, classes=2, size=16, suffix=("", "")):
    """Pairs of a random image and an index mask; returns the masks by name."""
    rng = np.random.default_rng(0)
    masks = {}
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for name in names:
        masks[name] = rng.integers(0, classes, (size, size), dtype=np.uint8)
        image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}{suffix[0]}.png")
        Image.fromarray(masks[name]).save(folder / "masks" / f"{name}{suffix[1]}.png")
    return masks


class TestPairing:
    @pytest.mark.parametrize(
        ("images", "masks", "files"),
        [
            ("*_image.tif", "*_label.tif", ["a_image", "b_image", "a_label", "b_label"]),
            ("img_*.tif", "lab_*.tif", ["img_a", "img_b", "lab_a", "lab_b"]),
            ("*/rgb/*.tif", "*/gt/*.tif", ["p/rgb/x", "q/rgb/x", "p/gt/x", "q/gt/x"]),
            ("**/i*.tif", "**/l*.tif", ["i1", "d/i2", "l1", "d/l2"]),
        ],
    )
    def test_by_what_the_star_matched(self, tmp_path, images, masks, files):
        paths = [tmp_path / f"{name}.tif" for name in files]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_raster(path, random_image(8, 8, 1))
        actual = find_scenes(tmp_path, images=images, masks=masks)
        assert {(scene.image, scene.labels) for scene in actual} == {tuple(paths[::2]), tuple(paths[1::2])}

    def test_by_stem_where_patterns_do_not_tell(self, tmp_path):
        write_pairs(tmp_path, ["a1", "a2"])
        actual = find_scenes(tmp_path, images="images/a?.*", masks="masks/*.png")
        assert [scene.labels.stem for scene in actual] == ["a1", "a2"]

    def test_names_that_differ_get_advice(self, tmp_path):
        write_pairs(tmp_path, ["t1", "t2"], suffix=("_rgb", "_gt"))
        with pytest.raises(
            DataError, match=r"have no partner.*--images 'images/t\*_rgb.png' --masks 'masks/t\*_gt.png'"
        ):
            find_scenes(tmp_path)
        assert len(find_scenes(tmp_path, images="images/t*_rgb.png", masks="masks/t*_gt.png")) == 2

    def test_one_vector_file_for_all_images(self, tmp_path):
        for number in range(3):
            write_raster(
                tmp_path / f"s{number}.tif", random_image(8, 8), origin=(500000 + 4 * number, 5000000)
            )
        shapes = [box(500000, 4999990, 500006, 5000000)]
        geopandas.GeoDataFrame({"label": [1]}, geometry=shapes, crs="EPSG:32632").to_file(
            tmp_path / "all.gpkg"
        )
        actual = find_scenes(tmp_path, images="*.tif", masks="*.gpkg")
        assert [scene.labels.name for scene in actual] == ["all.gpkg"] * 3
        shares = [scene.load(spec_at(0.5), None).labels.mean() for scene in actual]
        assert shares == [1.0, 0.5, 0.0]

    def test_two_files_by_name(self, tmp_path):
        for name in ("scene.tif", "labels.tif"):
            write_raster(tmp_path / name, random_image(8, 8, 1))
        (scene,) = find_scenes(tmp_path, images="scene.tif", masks="labels.tif")
        assert (scene.image.name, scene.labels.name) == ("scene.tif", "labels.tif")

    @pytest.mark.parametrize("images", ["none/*", "/abs/*"])
    def test_nothing_found(self, tmp_path, images):
        write_pairs(tmp_path, ["a"])
        with pytest.raises(DataError, match=r"nothing matches none/|is no pattern inside a folder"):
            find_scenes(tmp_path, images=images)


class TestClasses:
    def write(self, tmp_path, listed):
        path = tmp_path / "classes.json"
        path.write_text(json.dumps(listed))
        return str(path)

    def test_names_alone(self):
        table = read_classes("other, building")
        assert [item.name for item in table.classes] == ["other", "building"]
        assert (table.colours, table.values) == (None, None)

    def test_colours_values_and_unlabelled(self, tmp_path):
        table = read_classes(
            self.write(
                tmp_path,
                [
                    {"name": "unlabelled", "value": 0, "mask_colour": [0, 0, 0]},
                    {"name": "land", "colour": "#010203", "value": [1, 2]},
                    {"name": "water", "colour": [0, 0, 9], "mask_colour": [[7, 7, 7], "#080808"], "value": 3},
                ],
            )
        )
        assert [(item.name, item.colour) for item in table.classes] == [
            ("land", (1, 2, 3)),
            ("water", (0, 0, 9)),
        ]
        assert table.colours == {(0, 0, 0): 255, (1, 2, 3): 0, (7, 7, 7): 1, (8, 8, 8): 1}
        assert table.values == {0: 255, 1: 0, 2: 0, 3: 1}

    @pytest.mark.parametrize(
        ("listed", "message"),
        [
            ({"land": 1}, "needs a JSON list"),
            ("[" * 9999, "classes.json"),
            ([{"name": "a", "mask_colour": [[1, 2, 3], [4, 5]]}], "in class 1, mask_colour"),
            ([{"name": "a", "value": 1.5}], "in class 1, value"),
            ([{"colour": [1, 2, 3]}], "required field `name` in class 1"),
            ([{"name": "a", "colour": [1, 2]}], "in class 1, colour"),
            ([{"name": "a", "kind": 1}], "unknown field `kind` in class 1"),
            ([{"name": "a", "value": 1}, {"name": "b"}], "not for b"),
            ([{"name": "a", "value": 1}, {"name": "b", "value": [2, 1]}], "value 1 stands for two classes"),
            (
                [{"name": "a", "colour": "#000000"}, {"name": "b", "colour": "#000000"}],
                "stands for two classes",
            ),
            ([{"name": "a"}, {"name": "a"}], "needs different names, found a"),
        ],
    )
    def test_a_wrong_file_is_reported(self, tmp_path, listed, message):
        with pytest.raises(DataError, match=message):
            read_classes(self.write(tmp_path, listed))


class TestOpening:
    def config(self, folder, **options):
        return DataConfig(**({"folders": (folder,), "classes": "other,building"} | options))

    def test_pairs_to_arrays_and_rasters(self, tmp_path):
        masks = write_pairs(tmp_path / "d", ["a", "b", "c"])
        data = open_data(self.config(tmp_path / "d", val=("b",), test=("c",)))
        assert [len(data.split(part)) for part in ("train", "val", "test")] == [1, 1, 1]
        assert data.class_names == ("other", "building")
        assert data.gsd_m is None
        for source in data.sources:
            scene = source.load(spec_at(1.0), tmp_path / "kept")
            assert isinstance(scene.image, np.memmap)
            assert isinstance(scene.labels, np.memmap)
            np.testing.assert_array_equal(scene.labels, masks[source.name])
            np.testing.assert_array_equal(
                scene.image.transpose(1, 2, 0),
                np.array(Image.open(tmp_path / "d/images" / f"{source.name}.png")),
            )
            image, labels = source.rasters(tmp_path / "kept")
            with rasterio.open(image) as opened, rasterio.open(labels) as truth:
                assert truth.shape == opened.shape
                np.testing.assert_array_equal(truth.read(1), masks[source.name])

    def test_colour_masks_by_the_classes_colours(self, tmp_path):
        masks = write_pairs(tmp_path / "d", ["a", "b"])
        colours = np.array([[9, 9, 9], [200, 0, 0]], np.uint8)
        for name, mask in masks.items():
            Image.fromarray(colours[mask]).save(tmp_path / "d/masks" / f"{name}.png")
        table = tmp_path / "classes.json"
        table.write_text(
            json.dumps([{"name": "other", "colour": [9, 9, 9]}, {"name": "building", "colour": [200, 0, 0]}])
        )
        data = open_data(self.config(tmp_path / "d", classes=str(table)))
        for source in data.sources:
            np.testing.assert_array_equal(
                source.load(spec_at(1.0), tmp_path / "k").labels, masks[source.name]
            )
        colours[1] = 77
        Image.fromarray(colours[masks["a"]]).save(tmp_path / "d/masks/a.png")
        with pytest.raises(DataError, match=r"a.png: colour \(77, 77, 77\) is no class"):
            open_data(self.config(tmp_path / "d", classes=str(table))).sources[0].load(
                spec_at(1.0), tmp_path / "k"
            )

    def test_validation_is_held_out_by_scene_and_said(self, tmp_path, caplog):
        write_pairs(tmp_path, [f"s{number:02}" for number in range(20)])
        data = open_data(self.config(tmp_path, test=("s19",)))
        assert [len(data.split(part)) for part in ("train", "val", "test")] == [16, 3, 1]
        held = [source.name for source in data.split("val")]
        assert f"3 of 19 training scenes are held out to choose the epoch: {', '.join(held)}" in caplog.text
        again = open_data(self.config(tmp_path, test=("s19",)))
        assert [source.name for source in again.split("val")] == held
        other = open_data(self.config(tmp_path, test=("s19",), seed=1))
        assert [source.name for source in other.split("val")] != held

    def test_validation_by_labelled_area(self, tmp_path):
        """One scene holds 16 of 19 labelled parts: it is never the one held out."""
        write_pairs(tmp_path, ["a", "b", "c"])
        Image.new("RGB", (64, 64)).save(tmp_path / "images/big.png")
        Image.new("L", (64, 64)).save(tmp_path / "masks/big.png")
        for seed in range(6):
            data = open_data(self.config(tmp_path, seed=seed))
            assert "big" not in [source.name for source in data.split("val")]
            assert len(data.split("val")) in (1, 2, 3)

    def test_a_single_scene_is_cut_in_two(self, tmp_path, caplog):
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        labels = np.random.default_rng(0).integers(0, 2, (100, 40), dtype=np.uint8)
        labels[80:] = IGNORE  # the lower part holds no labels
        write_raster(tmp_path / "images/a.tif", random_image(100, 40))
        write_raster(tmp_path / "masks/a.tif", labels)
        data = open_data(self.config(tmp_path, val_share=0.25))
        assert "a.tif is the only training scene: its rows from 60 on (25 % of its labels)" in caplog.text
        for split, rows in (("train", slice(0, 60)), ("val", slice(60, 80))):
            (source,) = data.split(split)
            np.testing.assert_array_equal(source.load(spec_at(0.5), tmp_path / "k").labels, labels[rows])
            whole = np.full_like(labels, IGNORE)
            whole[rows] = labels[rows]
            with rasterio.open(source.rasters(tmp_path / "k")[1]) as truth:
                np.testing.assert_array_equal(truth.read(1), whole)

    def test_polygons_in_a_list_with_their_field(self, tmp_path):
        write_raster(tmp_path / "a.tif", random_image(20, 20))
        shapes = [box(500000, 4999990, 500005, 5000000)]
        geopandas.GeoDataFrame(
            {"kind": ["building"], "label": [9]}, geometry=shapes, crs="EPSG:32632"
        ).to_file(tmp_path / "a.gpkg")
        listed = tmp_path / "list.csv"
        listed.write_text(
            "image,labels,split,classes_field\na.tif,a.gpkg,train,kind\na.tif,a.gpkg,val,kind\n"
        )
        data = open_data(DataConfig(scenes=(listed,), classes="other,building"))
        assert data.gsd_m == pytest.approx(0.5, rel=1e-3)
        assert len({source.name for source in data.sources}) == 2
        labels = data.sources[0].load(spec_at(0.5), tmp_path / "k").labels
        assert (labels[:, :10] == 1).all()
        assert (labels[:, 10:] == 0).all()
        listed.write_text("image,labels\na.tif,a.gpkg\n")
        with pytest.raises(DataError, match=r"a.gpkg: feature 1 has label 9, which is no class"):
            open_data(DataConfig(scenes=(listed,), classes="other,building"))

    def test_options_that_fit_nothing(self, tmp_path):
        write_pairs(tmp_path, ["a", "b"])
        with pytest.raises(DataError, match=r"--val x\*: matches none of the 2 images \(a, b\)"):
            open_data(self.config(tmp_path, val=("x*",)))
        with pytest.raises(UsageError, match="no classes"):
            open_data(self.config(tmp_path, classes=""))
        assert open_data(
            self.config(tmp_path, classes=""), default_classes=ClassSpec.from_names(["a", "b"])
        ).class_names == ("a", "b")
        with pytest.raises(UsageError, match="exclude each other"):
            self.config(tmp_path, dataset="loveda")
        with pytest.raises(UsageError, match="no data: pass --data"):
            DataConfig()


class TestCoding:
    """Masks of 0 and 255, and polygons that lie elsewhere."""

    def open(self, folder, classes="other,building", **more):
        return open_data(DataConfig(folders=(folder,), classes=classes, gsd_m=0.5, **more))

    def masks(self, folder, high, count=3):
        for part in ("images", "masks"):
            (folder / part).mkdir()
        for name in range(count):
            write_raster(folder / "images" / f"{name}.tif", random_image(30, 40, seed=name))
            labels = np.zeros((30, 40), np.uint8)
            labels[5 + name : 20, 10:30] = high
            write_raster(folder / "masks" / f"{name}.tif", labels)

    def test_0_and_255_of_all_scenes(self, tmp_path):
        self.masks(tmp_path, 255)
        data = self.open(tmp_path)
        counts = sum(class_counts(source.load(spec_at(0.5), None)) for source in data.sources)
        with pytest.raises(DataError, match=r"0.tif: holds no building, but 23.3% are 255"):
            check_coding(counts, data.class_names, data.sources)
        write_raster(tmp_path / "masks" / "2.tif", np.ones((30, 40), np.uint8))  # buildings in one scene
        check_coding(counts, data.class_names, data.sources)
        check_coding(np.array([5, 5, 0]), data.class_names, data.sources)

    def test_polygons_that_lie_elsewhere(self, tmp_path):
        self.masks(tmp_path, 1)
        for shape, message in (
            (box(500002, 4999990, 500008, 4999996), ""),
            (box(520002, 4999990, 520008, 4999996), "lies elsewhere"),
            (box(4999990, 500002, 4999996, 500008), "Its x and y are swapped"),
        ):
            path = tmp_path / "masks" / "all.gpkg"
            geopandas.GeoDataFrame({"class": ["building"]}, geometry=[shape], crs="EPSG:32632").to_file(path)
            if not message:
                self.open(tmp_path, masks="masks/all.gpkg")
                continue
            with pytest.raises(DataError, match=message):
                self.open(tmp_path, masks="masks/all.gpkg")

    def test_rasters_that_lie_elsewhere_are_warned_of(self, tmp_path, caplog):
        self.masks(tmp_path, 1, count=1)
        labels = np.ones((30, 40), np.uint8)
        write_raster(tmp_path / "masks" / "0.tif", labels, origin=(520000, 5000000))
        scene = LabelledScene(tmp_path / "images" / "0.tif", tmp_path / "masks" / "0.tif", "train")
        assert (scene.load(spec_at(0.5), None).labels == IGNORE).all()
        assert "0.tif: lies elsewhere" in caplog.text


class TestReading:
    @pytest.mark.parametrize("gsd", [0.5, 1.3])
    def test_blocks_leave_no_trace(self, tmp_path, gsd):
        """Read in small blocks as in one; the image has no holes, whose filling depends on the window."""
        image, labels = random_image(150, 170), random_image(150, 170, 1)[0] % 2
        labels[:9], labels[:, 160:] = IGNORE, IGNORE
        scene = LabelledScene(
            write_raster(tmp_path / "i.tif", image), write_raster(tmp_path / "l.tif", labels), "train"
        )
        whole = scene.load(spec_at(gsd), None)
        parts = replace(scene, block=(16, 32)).load(spec_at(gsd), tmp_path / "kept")
        np.testing.assert_array_equal(parts.image, whole.image)
        np.testing.assert_array_equal(parts.labels, whole.labels)

    @pytest.mark.parametrize("kind", ["uint16", "int16", "float32", "one band", "uint8", "nodata"])
    def test_pixels_as_prediction_sees_them(self, tmp_path, kind, caplog):
        """Values and fill values of every kind: the network is trained on what it will be shown."""
        rng = np.random.default_rng(0)
        image = rng.integers(200, 3000, (3, 300, 256)).astype(np.float64)
        image[0] *= 3
        hole, nodata, given = np.s_[:, :60], None, None
        if kind == "uint8":
            image //= 40
        fill = {"int16": -9999, "float32": -9999, "nodata": -9999}.get(kind, 0)
        if kind == "one band":
            hole, nodata, fill = np.s_[1, :60], 0, 0
        image[hole] = fill
        given = fill if kind == "nodata" else None
        dtype = {"one band": "uint16", "nodata": "int16"}.get(kind, kind)
        path = write_raster(tmp_path / "i.tif", image.clip(-9999, 32767).astype(dtype), nodata=nodata)
        labels = write_raster(tmp_path / "l.tif", np.zeros((300, 256), np.uint8))
        scene = LabelledScene(path, labels, "train", nodata=given)
        spec = spec_at(0.5)
        loaded = scene.load(spec, None)
        trained_on = [note for note in caplog.messages if "i.tif" in note]
        caplog.clear()
        recorder = Recorder()
        config = PredictConfig(tile_size=512, overlap=0, nodata=given)
        predict(path, tmp_path / "map.tif", model=TrainedModel(network=recorder, spec=spec), config=config)
        mean, std = (np.array(part)[:, None, None] for part in (spec.mean, spec.std))
        shown = np.clip(recorder.seen[:, :300, :256] * std + mean, 0, 1)
        np.testing.assert_allclose(loaded.image / 255, shown, atol=0.5 / 255 + 1e-5)
        assert loaded.image[:, 60:].std() > 50  # the stretch is that of the ground, not of the fill
        assert (loaded.labels[:60] == (IGNORE if kind == "nodata" else 0)).all()
        assert (loaded.labels[60:] == 0).all()
        for notes in (trained_on, caplog.messages):
            warned = any(f"pass --nodata {fill}" in note for note in notes)
            assert warned == (kind not in ("one band", "nodata"))

    def test_a_single_image_is_stretched_as_a_whole(self, tmp_path):
        """Its two parts, for training and validation, are what prediction makes of them."""
        image = np.random.default_rng(0).integers(200, 3000, (3, 120, 80)).astype(np.int16)
        image[:, 90:] += 2000  # the rows held out are brighter
        image[:, :20, :30] = -9999
        for part in ("images", "masks"):
            (tmp_path / part).mkdir()
        path = write_raster(tmp_path / "images" / "a.tif", image)
        write_raster(tmp_path / "masks" / "a.tif", np.eye(120, 80, dtype=np.uint8))
        whole = LabelledScene(path, tmp_path / "masks" / "a.tif", "train").load(spec_at(0.5), None)
        data = open_data(DataConfig(folders=(tmp_path,), classes="other,building", val_share=0.25))
        parts = [source.load(spec_at(0.5), tmp_path / source.name) for source in data.sources]
        assert [source.split for source in data.sources] == ["train", "val"]
        undivided = DataConfig(folders=(tmp_path,), classes="other,building")
        assert [source.split for source in open_data(undivided, hold_out=False).sources] == ["train"]
        assert np.array_equal(np.concatenate([part.image for part in parts], 1), whole.image)
        marked = DataConfig(folders=(tmp_path,), classes="other,building", val_share=0.25, nodata=-9999)
        first = open_data(marked).sources[0].load(spec_at(0.5), tmp_path / "marked")
        assert (first.labels[:20, :30] == IGNORE).all()

    @pytest.mark.parametrize("kind", ["value", "alpha", "mask"])
    def test_pixels_without_data_are_unlabelled_and_filled(self, tmp_path, make_raster, kind):
        image = make_raster("i.tif", kind=kind, hole=(10, 20, 15, 25), shape=(60, 80))
        labels = write_raster(tmp_path / "l.tif", np.ones((60, 80), np.uint8), crs="EPSG:32633")
        scene = LabelledScene(image, labels, "train")
        got = scene.load(spec_at(0.5), None)
        assert (got.labels[10:25, 20:45] == IGNORE).all()
        assert (got.labels == 1).sum() == 60 * 80 - 15 * 25
        assert got.image[:, 10:25, 20:45].min() > 0
        named = replace(scene, format=LabelFormat(class_names=("other", "building")))
        _, path = named.rasters(tmp_path / "k")
        with rasterio.open(path) as truth:
            assert (truth.read(1)[10:25, 20:45] == IGNORE).all()
            assert (truth.read(1) == 1).sum() == 60 * 80 - 15 * 25

    def test_chosen_bands_by_way_of_a_vrt(self, tmp_path):
        image = random_image(30, 20, bands=4)
        image[3, :10] = 0  # would be holes if the fourth band were taken as alpha
        path = write_raster(tmp_path / "i & j.tif", image)
        labels = write_raster(tmp_path / "l.tif", image[0] % 2)
        bands = ((4, "nir"), (1, "red"))
        scene = LabelledScene(path, labels, "train", bands=bands)
        spec = ModelSpec(
            name="t", architecture="external", classes=ClassSpec.from_names(["a", "b"]), bands=("red", "nir"),
            mean=(0, 0), std=(1, 1), gsd_m=0.5,
        )  # fmt: skip
        np.testing.assert_array_equal(scene.load(spec, tmp_path / "k").image, image[[0, 3]])
        named = replace(scene, format=LabelFormat(class_names=("a", "b")))
        opened, _ = named.rasters(tmp_path / "k")
        with rasterio.open(opened) as dataset:
            assert dataset.descriptions == ("nir", "red")
            np.testing.assert_array_equal(dataset.read(), image[[3, 0]])
            assert dataset.transform.e == -0.5


def test_table_of_what_was_found():
    train = drawn(np.array([[0, 0, 0], [1, 255, 255]], np.uint8))
    val = drawn(np.zeros((1, 2), np.uint8))
    lines = data_table(
        {"train": [train, train], "val": [val], "test": []}, ["land", "water", "ice"]
    ).splitlines()
    assert lines == [
        "             training  validation",
        "scenes              2           1",
        "megapixels       0.00        0.00",
        "labelled        66.7%      100.0%",
        "land        6 (75.0%)  2 (100.0%)",
        "water       2 (25.0%)    0 (0.0%)",
        "ice          0 (0.0%)    0 (0.0%)",
        "warning: ice: no labels in the training part, nothing to learn from",
        "warning: water, ice: no labels in the validation part, no say in the choice of the epoch",
    ]


def test_a_given_stretch_is_what_training_reads(tmp_path):
    """0 and 255 are its ends, whatever the image holds; a pair for each band where there are several."""
    image, labels = np.full((3, 8, 8), 1000, np.uint16), np.zeros((8, 8), np.uint8)
    image[:, 0] = 5000
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "b.tif", labels)
    scene = LabelledScene(tmp_path / "a.tif", tmp_path / "b.tif", "train")
    for stretch, expected in (((0, 2000), [128] * 3), ((0, 2000, 0, 4000, 1000, 9000), [128, 64, 0])):
        loaded = replace(scene, stretch=stretch).load(spec_at(0.5), None)
        assert loaded.image[:, 4, 4].tolist() == expected
    kept = replace(spec_at(0.5), stretch=((0, 2000),) * 3)
    assert scene.load(kept, None).image[:, 4, 4].tolist() == [128] * 3
    with pytest.raises(UsageError, match="2 pairs for 3 bands"):
        replace(scene, stretch=(0, 1, 0, 1)).load(spec_at(0.5), None)
