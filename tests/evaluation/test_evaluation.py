"""Scores of a model on labelled scenes: those of the maps that `predict` makes."""

import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from fake_datasets import make_landcoverai
from torch import nn

from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig, LabelFormat, LabelledData, datasets
from rsseg_cli.errors import DataError
from rsseg_cli.evaluation.evaluate_model import evaluate, score_config
from rsseg_cli.evaluation.scoring import Scorer
from rsseg_cli.pipeline import predict
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel

torch.set_num_threads(1)
NAMES = ("roof", "road", "tree")
LEVELS = (100, 115, 200)  # the darkest is not so dark that it may be a fill value
CONFIG = PredictConfig(tile_size=64, overlap=0, batch_size=2, device="cpu")
# every note of a command is a warning; tests look at them
LOG = "rsseg_cli"


class Oracle(nn.Module):
    """Reads the class from the first band; `shift` px late along the columns."""

    def __init__(self, shift: int = 0, levels: tuple[int, ...] = LEVELS) -> None:
        super().__init__()
        self.shift = shift
        self.levels = nn.Parameter(torch.tensor(levels, dtype=torch.float32) / 255)

    def forward(self, image):
        near = -((image[:, :1] - self.levels[None, :, None, None]) ** 2)
        return torch.cat((near[..., :1].expand(*near.shape[:3], self.shift), near), 3)[..., : near.shape[3]]


def oracle(shift=0, names=NAMES, levels=LEVELS, name="oracle"):
    return TrainedModel(Oracle(shift, levels).eval(), ModelSpec.for_network(classes=names, name=name))


@pytest.fixture
def labelled(make_raster):
    """labelled(name, labels, ...) -> a scene whose pixels tell their class."""

    def make(name, labels, *, split="test", crs="EPSG:32633", names=NAMES, **options):
        pixels = np.array([*LEVELS, *[0] * 253])[labels].astype(np.uint8)
        image = make_raster(f"{name}.tif", array=np.stack([pixels] * 3), crs=crs, **options)
        truth = make_raster(f"{name}_labels.tif", array=labels[None].astype(np.uint8), crs=crs)
        return datasets.LabelledScene(image, truth, split, format=LabelFormat(class_names=names))

    return make


def data_of(*scenes, names=NAMES, protocol=None):
    return LabelledData(
        "drawn", tuple(scenes), ClassSpec.from_names(names), protocol=protocol or datasets.ScoringProtocol()
    )


def blocks(seed=0, shape=(96, 128)):
    """Labels in blocks of 16 px."""
    classes = np.random.default_rng(seed).integers(0, 3, (-(-shape[0] // 16), -(-shape[1] // 16)))
    return np.kron(classes, np.ones((16, 16), int))[: shape[0], : shape[1]].astype(np.uint8)


def test_a_perfect_network_scores_one_on_scenes_of_different_crs(labelled):
    scenes = [labelled("utm", blocks(0)), labelled("mercator", blocks(1, (70, 90)), crs="EPSG:3857")]
    seen = []
    done = evaluate(oracle(), data_of(*scenes), "test", config=CONFIG, progress=seen.append)
    scores = done.result.scores
    assert scores["miou"] == scores["mean_f1"] == scores["overall_accuracy"] == scores["kappa"] == 1
    assert scores["boundary"]["wfm"] == pytest.approx(1)
    assert scores["boundary"]["boundary_iou"]["mean"] == [1, 1, 1, 1]
    assert done.result.confusion.sum() == 96 * 128 + 70 * 90
    assert not done.worst
    assert [(item.name, item.number, item.sources, item.pixels) for item in seen] == [
        ("utm", 1, 2, 96 * 128),
        ("mercator", 2, 2, 70 * 90),
    ]


def test_a_shifted_network_scores_what_one_counts_by_hand(labelled):
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    done = evaluate(oracle(shift=2), data_of(labelled("halves", labels)), "test", config=CONFIG)
    roof, road, tree = done.result.scores["classes"]
    assert roof["iou"] == pytest.approx(32 / 34)  # two columns of road are mapped as roof
    assert road["iou"] == pytest.approx(30 / 32)
    assert tree["iou"] is None
    assert done.result.scores["miou"] == pytest.approx((32 / 34 + 30 / 32) / 2)
    assert done.result.scores["overall_accuracy"] == pytest.approx(62 / 64)
    (worst,) = done.worst
    assert (worst.scene, worst.wrong, worst.labelled) == ("halves", 128, 4096)
    assert worst.confusions == ((1, 0, 128),)
    assert (worst.truth == labels).all()
    assert (worst.mapped == np.roll(labels, 2, 1) * (np.arange(64) >= 2)).all()
    assert (worst.image == np.array(LEVELS)[labels][..., None]).all()


def test_the_same_as_predict_and_score(labelled, tmp_path):
    scenes = [labelled("a", blocks(0, (150, 170)), kind="alpha"), labelled("b", blocks(1))]
    model, data = oracle(shift=5), data_of(*scenes)
    config = PredictConfig(tile_size=64, overlap=16, device="cpu", tta="flip")
    done = evaluate(model, data, "test", config=config)
    scorer = Scorer(score_config(data))
    for scene in scenes:
        mapped, sure = tmp_path / f"{scene.name}_map.tif", tmp_path / f"{scene.name}_sure.tif"
        predict(scene.image, mapped, model=model, config=config, confidence=sure)
        _, truth = scene.rasters(tmp_path)
        scorer.add(scene.name, mapped, truth, confidence=sure)
    again = scorer.result()
    assert done.result.scores == again.scores
    assert (done.result.confusion == again.confusion).all()
    assert 0.5 < again.scores["miou"] < 0.99


def test_classes_are_matched_by_name(labelled):
    names = ("tree", "road", "roof")
    scene = labelled("a", blocks(), names=NAMES)
    model = oracle(names=names, levels=LEVELS[::-1])
    done = evaluate(model, data_of(scene, names=("Roof", "road", "tree")), "test", config=CONFIG)
    assert done.result.scores["miou"] == 1
    assert [item["name"] for item in done.result.scores["classes"]] == ["Roof", "road", "tree"]


def test_a_class_that_the_data_lack_is_warned_of_and_wrong(labelled, caplog):
    labels = blocks()
    known = np.where(labels == 2, 255, labels)  # what the model calls tree has no label here
    known[:10, :10] = 1
    image = labelled("image", labels)
    truth = labelled("truth", known, names=NAMES[:2])
    scene = datasets.LabelledScene(
        image.image, truth.labels, "test", format=LabelFormat(class_names=NAMES[:2])
    )
    labels_of_trees = int((labels[:10, :10] == 2).sum())
    done = evaluate(oracle(), data_of(scene, names=NAMES[:2]), "test", config=CONFIG)
    assert done.result.scores["pixels_outside_classes"] == labels_of_trees
    assert done.result.confusion[1, 2] == labels_of_trees
    words = [record.getMessage() for record in caplog.records]
    assert words == [
        "model 'oracle' has classes that the data do not have: tree; what is mapped so counts as wrong"
    ]


def test_classes_that_the_model_lacks_are_an_error(labelled):
    data = data_of(labelled("a", blocks()), names=("roof", "road", "sea"))
    with pytest.raises(DataError, match=r"does not have: sea; .*do not have: tree.*--classes"):
        evaluate(oracle(), data, "test", config=CONFIG)


def test_a_part_without_scenes_is_an_error(labelled):
    data = data_of(labelled("a", blocks(), split="train"), labelled("b", blocks(), split="train"))
    with pytest.raises(DataError, match=r"no scene in the part 'test' \(scenes found: train 2\)"):
        evaluate(oracle(), data, "test", config=CONFIG)


def test_only_the_part_that_is_asked_for_counts(labelled):
    wrong = labelled("wrong", blocks(0), split="train")
    wrong = datasets.LabelledScene(wrong.image, labelled("x", blocks(5)).labels, "train", format=wrong.format)
    done = evaluate(oracle(), data_of(wrong, labelled("b", blocks(), split="val")), "val", config=CONFIG)
    assert done.result.scores["miou"] == 1


def test_the_protocol_of_the_data_and_eroded_borders(labelled):
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    protocol = datasets.ScoringProtocol(name="drawn", out_of_means=("road",))
    data = data_of(labelled("halves", labels), protocol=protocol)
    plain = evaluate(oracle(shift=2), data, "test", config=CONFIG)
    assert plain.result.scores["miou"] == pytest.approx(32 / 34)
    eroded = evaluate(oracle(shift=2), data, "test", config=CONFIG, score=score_config(data, erode_px=3))
    assert eroded.result.scores["overall_accuracy"] == 1
    assert score_config(data, widths_px=(2, 4)).boundary_widths_px == (2, 4)
    assert score_config(data, erode_px=3).protocol.out_of_means == ("road",)


def test_maps_are_gone_afterwards(labelled, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    sizes = []
    scenes = [labelled("a", blocks(0)), labelled("b", blocks(1))]
    done = evaluate(
        oracle(shift=3),
        data_of(*scenes),
        "test",
        config=CONFIG,
        progress=lambda _: sizes.append(list(folder.iterdir())),
    )
    assert sizes == [[], []]
    assert {worst.scene for worst in done.worst} == {"a", "b"}  # their pictures were read before
    assert not any(Path(tile.predicted).exists() for tile in done.result.tiles)


def test_a_note_of_many_scenes_is_reported_once(labelled, caplog):
    scenes = [labelled(name, blocks(), crs=None) for name in "abc"]
    spec = ModelSpec(**{**oracle().spec.__dict__, "gsd_m": 0.5, "gsd_range_m": (0.4, 0.6)})
    with caplog.at_level(logging.WARNING, logger=LOG):
        evaluate(TrainedModel(Oracle().eval(), spec), data_of(*scenes), "test", config=CONFIG)
    words = [record.getMessage() for record in caplog.records if record.name.startswith(LOG)]
    assert len(words) == 2
    assert "a.tif: has no CRS; taken to be at the model's ground resolution" in words[0]
    assert words[1].startswith("2 more scenes like this: ")


def test_scenes_of_one_name_keep_their_own_tiles(labelled, tmp_path):
    """Pictures are read of the map that is there, not of an earlier one of the same name that is gone."""
    scenes = [labelled(name, blocks(seed)) for seed, name in enumerate(("a", "b"))]
    same = [dataclasses.replace(scene, name="0") for scene in scenes]
    done = evaluate(oracle(shift=2), data_of(*same), "test", config=CONFIG)
    assert [(item.scene, item.wrong > 0) for item in done.worst] == [("0", True)] * len(done.worst)
    assert len(done.result.tiles) == 2


def test_masks_of_0_and_255_are_refused(labelled):
    """Also where each scene alone might be without buildings."""
    labels = blocks(0) % 2
    scenes = [labelled(name, labels * 255, names=NAMES[:2]) for name in "ab"]
    model = oracle(names=NAMES[:2], levels=LEVELS[:2])
    with pytest.raises(DataError, match=rf"a_labels.tif: holds no {NAMES[1]}, but .* are 255"):
        evaluate(model, data_of(*scenes, names=NAMES[:2]), "test", config=CONFIG)
    scenes.append(labelled("c", labels, names=NAMES[:2]))
    done = evaluate(model, data_of(*scenes, names=NAMES[:2]), "test", config=CONFIG)
    assert done.result.scores["classes"][1]["pixels"] == labels.sum()


def test_a_given_stretch_is_that_of_predict(labelled, make_raster):
    """The network knows levels of 0 to 255 of a scene of 16 bits, whose percentiles are others."""
    scene = labelled("a", blocks(0))
    with rasterio.open(scene.image) as dataset:
        make_raster("wide.tif", array=dataset.read().astype(np.uint16) * 10)
    wide = dataclasses.replace(scene, image=scene.image.with_name("wide.tif"))
    for stretch, perfect in (("auto", False), ((0.0, 2550.0), True)):
        data = data_of(wide).marked(stretch=stretch)
        scores = evaluate(oracle(), data, "test", config=CONFIG).result.scores
        assert (scores["miou"] == 1) == perfect


def test_samples_of_torchgeo_with_0_and_255_are_refused(tmp_path):
    model = oracle(names=NAMES[:2], levels=LEVELS[:2])
    known = tmp_path / "classes.json"
    known.write_text(json.dumps([{"name": NAMES[0], "value": 0}, {"name": NAMES[1], "value": 255}]))
    make_landcoverai(tmp_path / "root", (0, 255))
    config = DataConfig(dataset="torchgeo:LandCoverAI", root=tmp_path / "root", classes=",".join(NAMES[:2]))
    with pytest.raises(DataError, match=rf"LandCoverAI test-0: holds no {NAMES[1]}, but .* are 255"):
        evaluate(model, datasets.open_data(config), "test", config=CONFIG)
    data = datasets.open_data(dataclasses.replace(config, classes=str(known)))
    assert evaluate(model, data, "test", config=CONFIG).result.scores["classes"][1]["pixels"] > 0
