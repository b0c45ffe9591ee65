"""Maps by ONNX files of any make: exported by rsseg, described by Deepness's keys, hostile."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from networks import read

from rsseg_cli import predict
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.inference import export
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, read_spec

torch.set_num_threads(1)
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TensorProto, helper = onnx.TensorProto, onnx.helper
SMALL = {"tile_size": 64, "overlap": 16, "dtype": "float32"}
ANY = ("n", 3, "h", "w")


def network(path, nodes, *, out=("n", 3, "h", "w"), shape=ANY, metadata=None, opsets=(("", 17),), stored=()):
    """Save an ONNX file of these nodes from `image` to `scores`."""
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, out)], list(stored),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*pair) for pair in opsets])
    helper.set_model_props(model, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    path.write_bytes(model.SerializeToString())
    return path


def bright(path, *, softmax=False, **more):
    """Scores are the bands' own values, so the class is the brightest band."""
    nodes = [helper.make_node("Mul", ["image", "ten"], ["scores" if not softmax else "large"])]
    nodes += [helper.make_node("Softmax", ["large"], ["scores"], axis=1)] if softmax else []
    ten = helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0])
    known = {"model_type": "Segmentor", "class_names": {"0": "r", "1": "g", "2": "b"}}
    return network(path, nodes, metadata=known | more.pop("metadata", {}), stored=[ten], **more)


def scene(make_raster, shape=(90, 110), seed=1):
    coarse = np.random.default_rng(seed).integers(0, 250, (3, 12, 14), np.uint8)
    return make_raster(array=np.kron(coarse, np.ones((1, 8, 8), np.uint8))[:, : shape[0], : shape[1]])


def brightest(path):
    return read(path).argmax(0)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_exported_model_makes_the_models_own_map(make_raster, tmp_path, runtime):
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    classes = ModelSpec.for_network(classes=["roof", "road", "tree"]).classes
    spec = ModelSpec(name="tiny", architecture="bicor-seg", classes=classes, network=asdict(config))
    model = TrainedModel(BicorSeg(config).eval(), spec)
    export.export_model(model, tmp_path / "tiny.onnx")
    image = make_raster(shape=(150, 170))
    settings = {**SMALL, "probabilities": tmp_path / "pa.tif"}
    predict(image, tmp_path / "a.tif", model=model, runtime="torch", **settings)
    settings["probabilities"] = tmp_path / "pb.tif"
    result = predict(image, tmp_path / "b.tif", model=tmp_path / "tiny.onnx", runtime=runtime, **settings)
    assert result.computed["tiny"]["runtime"] == runtime
    assert list(result.classes) == ["roof", "road", "tree"]
    difference = np.abs(read(tmp_path / "pa.tif").astype(int) - read(tmp_path / "pb.tif"))
    assert difference.max() <= 1
    assert (read(tmp_path / "a.tif") == read(tmp_path / "b.tif")).mean() > 0.999


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
def test_a_network_described_for_deepness(make_raster, tmp_path, softmax):
    model = bright(tmp_path / "net.onnx", softmax=softmax, metadata={"resolution": 50.0})
    image = scene(make_raster)
    predict(image, tmp_path / "map.tif", model=model, probabilities=tmp_path / "p.tif", **SMALL)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], brightest(image))
    expected = torch.from_numpy(read(image) / 25.5).softmax(0).numpy() * 254
    assert np.abs(read(tmp_path / "p.tif") - expected).max() <= 1.01
    spec = read_spec(model)
    assert spec.gsd_m == 0.5
    assert spec.class_names == ("r", "g", "b")


def test_values_are_standardised_as_the_metadata_says(make_raster, tmp_path):
    shifted = {"standardization_mean": [0.0, 0.9, 0.9], "standardization_std": [1.0, 1.0, 1.0]}
    model = bright(tmp_path / "net.onnx", metadata=shifted)
    image = scene(make_raster)
    predict(image, tmp_path / "map.tif", model=model, **SMALL)
    expected = (read(image) / 255 - np.array([0, 0.9, 0.9]).reshape(3, 1, 1)).argmax(0)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], expected)


def test_one_score_is_of_a_class_and_its_opposite(make_raster, tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "half"], ["less"]),
        helper.make_node("Mul", ["less", "many"], ["large"]),
        helper.make_node("Sigmoid", ["large"], ["scores"]),
    ]
    stored = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        for name, value in (("half", 0.5), ("many", 20))
    ]
    model = network(
        tmp_path / "net.onnx",
        nodes,
        out=("n", 1, "h", "w"),
        stored=stored,
        metadata={"class_names": {"0": "field"}},
    )
    image = scene(make_raster)
    result = predict(image, tmp_path / "map.tif", model=model, confidence=tmp_path / "c.tif", **SMALL)
    assert list(result.classes) == ["background", "field"]
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], read(image).mean(0) > 127.5)
    assert read(tmp_path / "c.tif").min() >= 126


def test_tiles_of_one_size_are_filled_up(make_raster, tmp_path):
    model = bright(tmp_path / "net.onnx", shape=(1, 3, 64, 64), out=(1, 3, 64, 64))
    for shape in ((40, 50), (90, 110)):
        image = scene(make_raster, shape)
        predict(image, tmp_path / "map.tif", model=model, overwrite=True, **SMALL)
        np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], brightest(image))
    with pytest.raises(ModelError, match="takes tiles of 64 x 64 px alone; pass --tile-size 64"):
        predict(image, tmp_path / "map.tif", model=model, overwrite=True, tile_size=96, overlap=0)


def test_a_description_beside_the_file(make_raster, tmp_path):
    model = bright(tmp_path / "net.onnx")
    content = onnx.load(model)
    del content.metadata_props[:]
    model.write_bytes(content.SerializeToString())
    with pytest.raises(
        ModelError, match=r"says nothing of its classes; needs metadata.*or a description beside it"
    ):
        read_spec(model)
    spec = ModelSpec.for_network(classes=["one", "two", "three"], name="mine")
    (tmp_path / "net.json").write_text(spec.to_json())
    result = predict(scene(make_raster), tmp_path / "map.tif", model=model, **SMALL)
    assert list(result.classes) == ["one", "two", "three"]
    (tmp_path / "net.json").write_text(ModelSpec.for_network(classes=["one"]).to_json())
    with pytest.raises(ModelError, match="needs batch x 1 classes"):
        read_spec(model)


def test_torch_does_not_compute_it(make_raster, tmp_path):
    with pytest.raises(UsageError, match="an ONNX file is computed on a CPU, by OpenVINO or ONNX Runtime"):
        predict(scene(make_raster), tmp_path / "map.tif", model=bright(tmp_path / "n.onnx"), runtime="torch")


def external(path):
    bright(path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path.write_bytes(model.SerializeToString())


def external_in_a_branch(path):
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/dev/zero")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)], "b", [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    node = helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch)
    network(path, [node], metadata={"class_names": {"0": "a", "1": "b", "2": "c"}})


def custom(path):
    node = helper.make_node("Shell", ["image"], ["scores"], domain="com.evil")
    network(path, [node], opsets=(("", 17), ("com.evil", 1)), metadata={"class_names": {"0": "a"}})


def endless(path):
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("Loop", ["image"], ["scores"], body=body)
    network(path, [node], metadata={"class_names": {"0": "a"}})


def two_inputs(path):
    bright(path)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ANY))
    path.write_bytes(model.SerializeToString())


def channels_last(path):
    bright(path, shape=(1, 64, 64, 3), out=(1, 64, 64, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (external, "tensor 'ten' lies in another file, which is not read"),
        (external_in_a_branch, "tensor 't' lies in another file"),
        (custom, "operator 'Shell' of 'com.evil' is no standard one"),
        (endless, "operator Loop repeats what it holds"),
        (two_inputs, "2 inputs; needs one, the image"),
        (channels_last, "its output is 1 x 64 x 64 x 3; needs batch x 3 classes x height x width"),
        (
            lambda path: bright(path, metadata={"model_type": "Detector"}),
            "a Detector; needs a network that segments",
        ),
        (lambda path: bright(path, metadata={"class_names": {"0": "a", "2": "b"}}), "numbered from 0"),
        (lambda path: bright(path, metadata={"class_names": {"0": "a"}}), "needs batch x 1 classes"),
        (lambda path: bright(path, metadata={"standardization_std": [1, 0, 1]}), "std above 0"),
        (lambda path: path.write_bytes(b"not a network"), "no ONNX file, or a damaged one"),
        (lambda path: path.write_bytes(b"\xff" * 100), "no ONNX file, or a damaged one"),
        (lambda path: path.write_bytes(b""), "no ONNX file, or a damaged one"),
    ],
)
def test_hostile_files_are_refused_in_words(tmp_path, make, words):
    path = tmp_path / "net.onnx"
    make(path)
    for read_it in (read_spec, load_model):
        with pytest.raises(ModelError) as caught:
            read_it(path)
        assert words in str(caught.value)


def test_a_file_cut_off_anywhere_is_an_error_of_the_model(tmp_path):
    whole = bright(tmp_path / "net.onnx").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(ModelError):
            load_model(tmp_path / "cut.onnx")


def test_what_openvino_cannot_compile_is_an_error_of_the_model(make_raster, tmp_path):
    node = helper.make_node("NoSuchOperator", ["image"], ["scores"])
    model = network(tmp_path / "net.onnx", [node], metadata={"class_names": {"0": "a", "1": "b", "2": "c"}})
    with pytest.raises(ModelError, match="openvino cannot compile the network"):
        predict(scene(make_raster), tmp_path / "map.tif", model=model, **SMALL)
