"""Published data sets in their own layouts: each pixel from file to array, and what is missing named."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from fake_datasets import ISPRS, draw, make_inria, make_loveda, make_potsdam, make_vaihingen
from PIL import Image

from rsseg_cli.data import benchmarks as benchmark_known
from rsseg_cli.data.benchmarks import choose_bands
from rsseg_cli.data.datasets import data_table, open_data
from rsseg_cli.data.torchgeo import arrays_of
from rsseg_cli.data.types import DataConfig, clean_names
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.weights import ModelSpec

MAKERS = {"loveda": make_loveda, "vaihingen": make_vaihingen, "potsdam": make_potsdam, "inria": make_inria}
ISPRS_NAMES = ("clutter", "impervious surfaces", "building", "low vegetation", "tree", "car")


def config_of(name, root, **options):
    dataset = "torchgeo:InriaAerialImageLabeling" if name == "inria" else name
    return DataConfig(dataset=dataset, root=root, **options)


def spec_of(data, **options):
    count = len(data.bands)
    return ModelSpec(
        **{
            "name": "t", "architecture": "external", "classes": data.classes, "bands": data.bands,
            "mean": (0,) * count, "std": (1,) * count, "gsd_m": data.gsd_m,
        } | options
    )  # fmt: skip


def mask_name(source):
    return source.labels.name


@pytest.mark.parametrize("name", MAKERS)
def test_every_pixel_to_arrays_and_rasters(tmp_path, name):
    truth = MAKERS[name](tmp_path / name)
    data = open_data(config_of(name, tmp_path / name))
    assert {mask_name(source) for source in data.sources} == set(truth)
    assert len({source.name for source in data.sources}) == len(truth)
    loaded = {}
    for source in data.sources:
        scene = source.load(spec_of(data), tmp_path / "kept")
        labels = truth[mask_name(source)]
        np.testing.assert_array_equal(scene.labels, labels)
        with rasterio.open(source.image) as opened:
            wanted = opened.read([band for band, _ in source.bands])
        np.testing.assert_array_equal(scene.image, wanted)
        assert scene.gsd_m == pytest.approx(data.gsd_m, rel=0.01)
        image, path = source.rasters(tmp_path / "rasters")
        with rasterio.open(image) as opened, rasterio.open(path) as written:
            np.testing.assert_array_equal(opened.read(), wanted)
            np.testing.assert_array_equal(written.read(1), labels)
            assert (written.transform, written.crs) == (opened.transform, opened.crs)
            assert opened.descriptions == data.bands
        loaded.setdefault(source.split, []).append(scene)
    assert "training" in data_table(loaded, data.class_names)


@pytest.mark.parametrize(
    ("name", "parts", "classes", "bands", "gsd_m", "out"),
    [
        ("loveda", (7, 1, 4), ("background", "building", "road", "water", "barren", "forest", "agriculture"),
         ("red", "green", "blue"), 0.3, ()),
        ("vaihingen", (3, 1, 2), ISPRS_NAMES, ("nir", "red", "green"), 0.09, ("clutter",)),
        ("potsdam", (3, 1, 2), ISPRS_NAMES, ("red", "green", "blue"), 0.05, ("clutter",)),
        ("inria", (3, 5, 0), ("background", "building"), ("red", "green", "blue"), 0.3, ()),
    ],
)  # fmt: skip
def test_parts_classes_bands_and_protocol(tmp_path, caplog, name, parts, classes, bands, gsd_m, out):
    MAKERS[name](tmp_path)
    data = open_data(config_of(name, tmp_path))
    assert tuple(len(data.split(part)) for part in ("train", "val", "test")) == parts
    assert (data.class_names, data.bands, data.gsd_m) == (classes, bands, gsd_m)
    assert data.protocol.out_of_means == out
    if name != "inria":
        assert "no validation part is named: 1 of" in caplog.text
    assert [source.name for source in data.split("val")] == [
        source.name for source in open_data(config_of(name, tmp_path)).split("val")
    ]


def test_loveda_test_part_is_its_val_folder_and_domains_choose(tmp_path):
    make_loveda(tmp_path)
    data = open_data(config_of("loveda", tmp_path, domains=("rural",)))
    assert {source.image.parts[-4] for source in data.split("test")} == {"Val"}
    assert {source.image.parts[-4] for source in data.split("train") + data.split("val")} == {"Train"}
    assert all(source.name.startswith("rural-") for source in data.sources)
    with pytest.raises(UsageError, match="--domains suburb"):
        open_data(config_of("loveda", tmp_path, domains=("suburb",)))


def test_validation_images_may_be_named(tmp_path):
    make_vaihingen(tmp_path)
    data = open_data(config_of("vaihingen", tmp_path, val=("*_area11", "*_area13")))
    assert [source.name for source in data.split("val")] == [
        "top_mosaic_09cm_area11",
        "top_mosaic_09cm_area13",
    ]
    assert len(data.split("train")) == 2
    with pytest.raises(DataError, match=r"--val \*_area6: matches none of the training images"):
        open_data(config_of("vaihingen", tmp_path, val=("*_area6",)))


def test_bands_of_potsdam(tmp_path):
    make_potsdam(tmp_path, count=2)
    data = open_data(config_of("potsdam", tmp_path, bands=("near-infrared", "red", "green")))
    assert data.bands == ("nir", "red", "green")
    source = data.split("train")[0]
    with rasterio.open(source.image) as opened:
        wanted = opened.read([4, 1, 2])
    np.testing.assert_array_equal(source.load(spec_of(data), tmp_path / "kept").image, wanted)
    with pytest.raises(UsageError, match="--bands thermal: potsdam has red, green, blue, nir"):
        open_data(config_of("potsdam", tmp_path, bands=("thermal",)))


def test_training_at_another_resolution(tmp_path):
    """LoveDA's files name no resolution; its 0.3 m are known, so that at 0.6 m pixels are halved."""
    make_loveda(tmp_path, size=64)
    data = open_data(config_of("loveda", tmp_path, gsd_m=0.6))
    assert data.gsd_m == 0.6
    scene = data.split("train")[0].load(spec_of(data), tmp_path / "kept")
    assert scene.image.shape == (3, 32, 32)
    assert scene.gsd_m == 0.6


def test_images_of_one_name_in_two_parts_stay_there(tmp_path):
    """Train/Urban/0.png and Val/Urban/0.png, whose numbers LoveDA itself never repeats."""
    make_loveda(tmp_path, count=4, val_count=4, domains=("Urban",))
    for kind in ("images_png", "masks_png"):
        folder = tmp_path / "Val" / "Urban" / kind
        for number, path in enumerate(sorted(folder.glob("*.png"))):
            path.rename(folder / f"{number}.png")
    for seed in range(4):
        data = open_data(config_of("loveda", tmp_path, domains=("urban",), seed=seed))
        assert {source.image.parts[-4] for source in data.split("test")} == {"Val"}
        assert {source.image.parts[-4] for source in data.split("train") + data.split("val")} == {"Train"}
        assert len(data.split("test")) == 4
        assert len({source.name for source in data.sources}) == 8
    data = open_data(config_of("loveda", tmp_path, domains=("urban",), val=("train-urban-0",)))
    assert [source.image.parts[-4] for source in data.split("val")] == ["Train"]


class TestMissing:
    @pytest.mark.parametrize(
        ("name", "lost", "message"),
        [
            ("loveda", "Train/Urban/masks_png/1.png", "1 images without mask: 1"),
            ("loveda", "Val/Rural/images_png/11.png", "1 masks without image: 11"),
            ("vaihingen", "top_mosaic_09cm_area11.tif", "1 images without mask: top_mosaic_09cm_area11"),
            ("vaihingen", "top/top_mosaic_09cm_area6.tif", "1 masks without image: top_mosaic_09cm_area6"),
            ("potsdam", "top_potsdam_2_11_label.tif", "1 images without mask: top_potsdam_2_11"),
            (
                "potsdam",
                "4_Ortho_RGBIR/top_potsdam_5_15_RGBIR.tif",
                "1 masks without image: top_potsdam_5_15",
            ),
            ("inria", "AerialImageDataset/train/gt/austin7.tif", "1 images without mask: austin7"),
        ],
    )
    def test_half_a_pair_is_named(self, tmp_path, name, lost, message):
        MAKERS[name](tmp_path)
        next(tmp_path.glob(lost)).unlink()
        with pytest.raises(DataError, match=message):
            open_data(config_of(name, tmp_path))

    def test_absent_images_of_the_official_list_are_reported(self, tmp_path, caplog):
        make_vaihingen(tmp_path)
        open_data(config_of("vaihingen", tmp_path))
        assert "12 of 16 images of the official train part are absent: top_mosaic_09cm_area17" in caplog.text

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("loveda", r"Train,Val}/{Urban,Rural}/{images_png,masks_png}"),
            ("vaihingen", r"top is missing \(unzip ISPRS_semantic_labeling_Vaihingen.zip"),
            ("potsdam", r"4_Ortho_RGBIR is missing \(unzip 4_Ortho_RGBIR.zip"),
            ("inria", "AerialImageDataset/train"),
            ("torchgeo:DeepGlobeLandCover", "torchgeo cannot open DeepGlobeLandCover there"),
        ],
    )
    def test_a_wrong_layout_is_reported(self, tmp_path, name, message):
        with pytest.raises(DataError, match=message) as caught:
            open_data(config_of(name, tmp_path))
        assert "nothing is downloaded" in str(caught.value)
        with pytest.raises(DataError, match="is no folder"):
            open_data(config_of(name, tmp_path / "none"))

    def test_an_unknown_domain_folder(self, tmp_path):
        make_loveda(tmp_path, domains=("Urban",))
        with pytest.raises(DataError, match=r"Rural is missing \(see --domains\)"):
            open_data(config_of("loveda", tmp_path))
        assert len(open_data(config_of("loveda", tmp_path, domains=("urban",))).sources) == 6


def test_a_colour_that_is_no_class_is_unlabelled_and_counted(tmp_path, caplog):
    """Some published masks hold such pixels; TorchGeo takes them for clutter."""
    truth = make_vaihingen(tmp_path, count=2)
    path = tmp_path / "top_mosaic_09cm_area1.tif"
    colours = ISPRS[truth[path.name]]
    colours[3, :5], colours[10, :7] = (252, 255, 0), (0, 0, 0)  # black: eroded borders
    Image.fromarray(colours).save(path)
    source = next(s for s in open_data(config_of("vaihingen", tmp_path)).sources if s.labels == path)
    data = open_data(config_of("vaihingen", tmp_path))
    labels = source.load(spec_of(data), tmp_path / "kept").labels
    assert (labels[3, :5] == 255).all()
    assert (labels[10, :7] == 255).all()
    assert (labels == 255).sum() == 12
    assert "area1.tif: 5 px of colours that are no class; left unlabelled" in caplog.text


def make_deepglobe(root, count=4):
    """DeepGlobe land cover, which TorchGeo reads and this program knows nothing of."""
    from torchgeo.datasets import DeepGlobeLandCover

    colours = np.array(DeepGlobeLandCover.colormap, np.uint8)
    truth = {}
    for part, folder in (("train", "training_data"), ("test", "test_data")):
        for sub in ("images", "masks"):
            (root / "data" / folder / sub).mkdir(parents=True)
        for number in range(count):
            image, labels = draw(32, 7, number)
            where = root / "data" / folder
            Image.fromarray(image[:3].transpose(1, 2, 0)).save(where / "images" / f"{number}_sat.jpg")
            Image.fromarray(colours[labels]).save(where / "masks" / f"{number}_mask.png")
            truth[f"{part}-{number}"] = labels
    return truth


class TestAnyOther:
    def test_from_its_class_to_pixels(self, tmp_path):
        truth = make_deepglobe(tmp_path / "d")
        data = open_data(DataConfig(dataset="torchgeo:deepglobelandcover", root=tmp_path / "d"))
        assert data.class_names[:3] == ("urban land", "agriculture land", "rangeland")
        assert data.classes[0].colour == (0, 255, 255)
        assert [len(data.split(part)) for part in ("train", "val", "test")] == [3, 1, 4]
        spec = spec_of(data, gsd_m=1.0)
        for source in data.sources:
            scene = source.load(spec, tmp_path / "kept")
            np.testing.assert_array_equal(scene.labels, truth[source.name])
            sample = source.dataset[source.index]
            np.testing.assert_array_equal(scene.image, sample["image"].numpy().astype(np.uint8))
            image, labels = source.rasters(tmp_path / "rasters")
            with rasterio.open(image) as opened, rasterio.open(labels) as written:
                np.testing.assert_array_equal(opened.read(), sample["image"].numpy())
                np.testing.assert_array_equal(written.read(1), truth[source.name])

    def test_bands_are_named_or_chosen(self, tmp_path):
        make_deepglobe(tmp_path / "d")
        config = {"dataset": "torchgeo:DeepGlobeLandCover", "root": tmp_path / "d"}
        for asked, channels in ((("nir", "red", "green"), [0, 1, 2]), (("blue", "red"), [2, 0])):
            data = open_data(DataConfig(**config, bands=asked))
            assert data.bands == asked
            source = data.sources[0]
            sample = source.dataset[source.index]["image"].numpy()
            loaded = source.load(spec_of(data, gsd_m=1.0), tmp_path / "kept")
            np.testing.assert_array_equal(loaded.image, sample[channels])
        with pytest.raises(
            UsageError, match=r"--bands a,b: DeepGlobeLandCover has 3 bands \(red, green, blue\)"
        ):
            open_data(DataConfig(**config, bands=("a", "b")))

    def test_a_part_without_masks_is_left_out(self, tmp_path, monkeypatch, caplog):
        from torchgeo.datasets import DeepGlobeLandCover

        make_deepglobe(tmp_path / "d")
        read = DeepGlobeLandCover.__getitem__

        def without_test_masks(self, index):
            sample = read(self, index)
            return sample if self.split == "train" else {"image": sample["image"], "id": index}

        monkeypatch.setattr(DeepGlobeLandCover, "__getitem__", without_test_masks)
        data = open_data(DataConfig(dataset="torchgeo:DeepGlobeLandCover", root=tmp_path / "d"))
        assert [len(data.split(part)) for part in ("train", "val", "test")] == [3, 1, 0]
        assert "its test part has no masks and is left out" in caplog.text

    def test_classes_given_must_hold_the_masks(self, tmp_path):
        make_deepglobe(tmp_path / "d")
        config = DataConfig(dataset="torchgeo:DeepGlobeLandCover", root=tmp_path / "d", classes="a,b")
        data = open_data(config)
        source = data.sources[0]
        with pytest.raises(DataError, match=r"DeepGlobeLandCover \S+: label value 2 is no class"):
            source.load(spec_of(data, gsd_m=1.0), tmp_path / "kept")

    @pytest.mark.parametrize(
        "name", ["NoSuchData", "os", "__doc__", "NAIP", "NonGeoDataset", "a.b", "stack_samples"]
    )
    def test_only_data_sets_of_images(self, tmp_path, name):
        with pytest.raises(UsageError, match="is none of the NonGeoDataset classes"):
            open_data(DataConfig(dataset=f"torchgeo:{name}", root=tmp_path))

    def test_classification_data_are_reported(self):
        sample = {"image": torch.zeros(3, 8, 8), "label": torch.tensor(1)}
        with pytest.raises(
            DataError, match=r"found image \(3, 8, 8\), label Tensor; needs image .* and mask"
        ):
            arrays_of(sample, "x")
        with pytest.raises(DataError, match=r"found image \(2, 3, 8, 8\), mask \(8, 8\)"):
            arrays_of({"image": torch.zeros(2, 3, 8, 8), "mask": torch.zeros(8, 8)}, "x")
        with pytest.raises(DataError, match="mask of float32"):
            arrays_of({"image": torch.zeros(3, 8, 8), "mask": torch.full((8, 8), 0.5)}, "x")
        image, mask = arrays_of({"image": torch.zeros(3, 8, 8), "mask": torch.ones(8, 8)}, "x")
        assert mask.dtype == np.int32
        assert (mask == 1).all()
        image, mask = arrays_of({"image": torch.zeros(3, 8, 8), "mask": torch.zeros(1, 8, 8).long()}, "x")
        assert (image.shape, mask.shape) == ((3, 8, 8), (8, 8))

    def test_options_that_do_not_fit(self, tmp_path):
        with pytest.raises(
            UsageError, match="--dataset cityscapes: needs loveda, vaihingen, potsdam, or torchgeo"
        ):
            open_data(DataConfig(dataset="cityscapes", root=tmp_path))
        with pytest.raises(UsageError, match="needs --root"):
            open_data(DataConfig(dataset="loveda"))
        with pytest.raises(UsageError, match="--classes: loveda has classes of its own"):
            open_data(DataConfig(dataset="loveda", root=tmp_path, classes="a,b"))
        with pytest.raises(UsageError, match="the test part of loveda is its own"):
            open_data(DataConfig(dataset="loveda", root=tmp_path, test=("a",)))


def test_names():
    assert clean_names(["Clutter/background", "Low_Vegetation"]) == ("clutter", "low vegetation")
    assert clean_names(["a/b", "a/c"]) == ("a/b", "a/c")
    assert clean_names(["A", "a"]) == ("a 0", "a 1")
    assert choose_bands((), ("nir", "red"), "x") == ((1, "nir"), (2, "red"))


def test_torchgeo_is_loaded_only_when_wanted():
    """It takes seconds: no module imports it at its top."""
    for path in Path(benchmark_known.__file__).parent.glob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("import torchgeo", "from torchgeo"))], path
