"""Model files: saved and loaded equal; damaged, foreign and hostile files refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.errors import ModelError, OutputError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, load_model, registry, save_model
from rsseg_cli.weights.registry import SPEC_KEY, check_sha256, file_sha256, list_models, read_spec
from rsseg_cli.weights.spec import ClassSpec

torch.set_num_threads(1)
CONFIG = BicorSegConfig(classes=3, encoder="resnet18", channels=16, layers=1)


@cache
def network() -> BicorSeg:
    torch.manual_seed(0)
    return BicorSeg(CONFIG).eval()


def spec(**values: Any) -> ModelSpec:
    start = ModelSpec(
        name="tiny",
        architecture="bicor-seg",
        classes=ClassSpec.from_names(("road", "field", "wood")),
        network=asdict(CONFIG),
        gsd_m=0.3,
        gsd_range_m=(0.2, 0.5),
        license="CC0-1.0",
        data="drawn",
        scores={"test": {"miou": 0.51234}},
    )
    return replace(start, **values)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return save_model(tmp_path / "tiny.safetensors", network(), spec())


def rewrite(path: Path, *, tensors: dict[str, torch.Tensor] | None = None, **values: Any) -> Path:
    """The model file with other tensors, or with other values in its description."""
    text = json.dumps({**json.loads(spec().to_json()), **values})
    save_file(load_file(path) if tensors is None else tensors, path, metadata={SPEC_KEY: text})
    return path


@pytest.mark.parametrize(("dtype", "close"), [("float32", 0.0), ("float16", 2e-2)])
def test_save_and_load_give_the_same_logits(tmp_path: Path, dtype: Any, close: float) -> None:
    path = save_model(tmp_path / "tiny.safetensors", network(), spec(), dtype=dtype)
    model = load_model(path)
    assert model.spec == spec() == read_spec(str(path))
    assert not model.network.training
    assert {tensor.dtype for tensor in model.network.parameters()} == {torch.float32}
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(image), network()(image), atol=close, rtol=0)


def test_loaded_model_can_be_trained_on(model_path: Path) -> None:
    model = load_model(model_path)
    model.network.train()(torch.rand(2, 3, 64, 64)).sum().backward()
    assert any(tensor.grad is not None for tensor in model.network.parameters())


def test_replacing_the_file_leaves_a_loaded_model_alone(tmp_path: Path) -> None:
    path = save_model(tmp_path / "tiny.safetensors", network(), spec(), dtype="float32")
    model = load_model(path)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def test_a_stored_model_is_loaded_on_first_use(model_path: Path) -> None:
    stored = registry.StoredModel(model_path)
    assert stored.spec == spec()
    assert stored.sha256() == hashlib.sha256(model_path.read_bytes()).hexdigest()
    assert "network" not in vars(stored)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(stored.network(image), load_model(model_path).network(image))
    assert stored.network is stored.network


def test_a_stored_model_whose_file_changes_is_refused(tmp_path: Path, model_path: Path) -> None:
    stored = registry.StoredModel(model_path)
    other = BicorSeg(CONFIG)
    save_model(model_path, other, spec(), overwrite=True)
    with pytest.raises(ModelError, match="changed while it was read"):
        _ = stored.network


def test_matrices_are_halved_and_vectors_kept(model_path: Path) -> None:
    stored = load_file(model_path)
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.float16}
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim == 1} == {torch.float32}


def test_save_is_whole_or_not_at_all(tmp_path: Path, model_path: Path) -> None:
    with pytest.raises(OutputError, match=r"exists\. Pass --overwrite"):
        save_model(model_path, network(), spec())
    before = model_path.read_bytes()
    broken = BicorSeg(CONFIG)
    broken.decoder.class_table.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"decoder\.class_table is not finite as torch.float16"):
        save_model(model_path, broken, spec(), overwrite=True)
    assert model_path.read_bytes() == before
    save_model(model_path, network(), spec(name="second"), overwrite=True)
    assert read_spec(model_path).name == "second"
    for name in ("tiny.pt", "absent/tiny.safetensors"):
        with pytest.raises(OutputError):
            save_model(tmp_path / name, network(), spec())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]


class Sentinel:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "pickle 2", "pickle 4", "pickle 5"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, trap = tmp_path / "model.safetensors", tmp_path / "trap"
    if kind == "torch":
        torch.save(Sentinel(trap), path)
    else:
        path.write_bytes(pickle.dumps(Sentinel(trap), protocol=int(kind[-1])))
    for read in (load_model, read_spec):
        with pytest.raises(ModelError, match=r"a pickle.*rsseg models import"):
            read(path)
    assert not trap.exists()


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x05"])
def test_a_header_whose_length_looks_like_a_pickle_is_read(model_path: Path, start: bytes) -> None:
    """The format allows spaces after the header, so its length can be any."""
    whole = model_path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    longer = length + (int.from_bytes(start, "little") - length) % 2**16
    padded = whole[8 : 8 + length].ljust(longer) + whole[8 + length :]
    model_path.write_bytes(longer.to_bytes(8, "little") + padded)
    assert model_path.read_bytes().startswith(start)
    assert load_model(model_path).spec == spec()


def test_truncated_files_are_refused(model_path: Path) -> None:
    whole = model_path.read_bytes()
    for size in (0, 5, 8, 100, 5000, len(whole) // 2, len(whole) - 1):
        model_path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=f"tiny.safetensors: {size} bytes"):
            load_model(model_path)
    model_path.write_bytes(whole + b"\0")
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(model_path)


def test_an_oversize_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # sparse: 20 MiB that take no room
        file.write((20 * 2**20).to_bytes(8, "little"))
        file.truncate(20 * 2**20 + 8)
    with pytest.raises(ModelError, match="header of 20971520 bytes"):
        read_spec(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="no safetensors file or a truncated one"):
        read_spec(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[]",
        b"3 ",
        b"null",
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": null}',
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b"\xff\xfe{}",
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"rsseg_model": 3}}',
        b'{"__metadata__": {"rsseg_model": "{}"}}',
        b'{"__metadata__": {"rsseg_model": "[[["}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": 3, "shape": [], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"9" * 5000 + b"]}}",
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (read_spec, load_model):
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            read(path)


def test_sizes_that_disagree_with_the_bytes_are_refused(model_path: Path) -> None:
    """A tensor whose shape is right for the network, in fewer bytes than the shape takes."""
    raw = model_path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__" and len(header[name]["shape"]) > 1)
    header[name]["dtype"] = "F64"
    text = json.dumps(header).encode()
    model_path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(ModelError, match="tensors cannot be read"):
        load_model(model_path)


@pytest.mark.parametrize(
    ("network_values", "words"),
    [
        ({"encoder": "nosuchnet"}, "encoder 'nosuchnet' is not one of timm"),
        ({"encoder": "hf-hub:someone/model"}, "is not one of timm"),
        ({"encoder": 3}, "is not one of timm"),
        ({"encoder": "resnet34"}, "tensors missing"),
        ({"encoder": "vit_tiny_patch16_224"}, "cannot be built"),
        ({"channels": 32}, "the network needs"),
        ({"channels": 17}, "multiple of 16"),
        ({"channels": "16"}, "cannot be built"),
        ({"channels": 16.0}, "cannot be built"),
        ({"channels": 4096, "layers": 32}, "tensors missing"),
        ({"layers": 0}, "layers 0"),
        ({"layers": 10**30}, "needs 1 to 32"),
        ({"layers": 2}, "tensors missing"),
        ({"classes": 4}, "network of 4 classes"),
        ({"in_channels": 4}, "4 bands"),
        ({"topk_ratio": 0}, "topk_ratio"),
        ({"more": 1}, "more"),
        ({"layers": 3}, "tensors missing"),
    ],
)
def test_networks_that_do_not_fit_are_reported(
    model_path: Path, network_values: dict[str, Any], words: str
) -> None:
    rewrite(model_path, network={**asdict(CONFIG), **network_values})
    with pytest.raises(ModelError) as error:
        load_model(model_path)
    assert words in str(error.value)
    assert str(error.value).startswith(str(model_path))


def test_a_description_alone_is_no_model(model_path: Path) -> None:
    rewrite(model_path, architecture="external")
    with pytest.raises(ModelError, match="'external' is not one that is loaded from files"):
        load_model(model_path)
    save_file(load_file(model_path), model_path)
    with pytest.raises(ModelError, match="without a model description"):
        read_spec(model_path)


def test_tensors_missing_or_too_many_are_named(model_path: Path) -> None:
    tensors = load_file(model_path)
    table = tensors.pop("decoder.class_table")
    rewrite(model_path, tensors=tensors)
    with pytest.raises(ModelError, match=r"1 tensors missing: decoder\.class_table"):
        load_model(model_path)
    rewrite(model_path, tensors={**tensors, "decoder.class_table": table, "more": table.clone()})
    with pytest.raises(ModelError, match="1 tensors unexpected: more"):
        load_model(model_path)
    rewrite(model_path, tensors={**tensors, "decoder.class_table": table[:, :8].clone()})
    with pytest.raises(ModelError, match=r"decoder.class_table is \[3, 8\], the network needs \[3, 16\]"):
        load_model(model_path)
    rewrite(model_path, tensors={**tensors, "decoder.class_table": table * float("nan")})
    with pytest.raises(ModelError, match="not finite"):
        load_model(model_path)


def test_unknown_names_and_paths_are_reported() -> None:
    for name in ("nosuch", "nosuch.safetensors", "/nosuch/model.safetensors", "."):
        with pytest.raises(ModelError, match="neither a file nor"):
            load_model(name)


def test_bundled_models_are_checked(model_path: Path) -> None:
    registered = file_sha256(model_path)
    check_sha256(model_path, registered)
    with pytest.raises(ModelError, match=r"\(buildings, .*landcover"):
        load_model("nosuch")
    rewrite(model_path, name="forged")
    with pytest.raises(ModelError, match="SHA-256"):
        check_sha256(model_path, registered)
    model_path.unlink()
    with pytest.raises(ModelError, match=r"tiny\.safetensors"):
        check_sha256(model_path, registered)


@pytest.mark.parametrize("name", list_models())
def test_bundled_models_are_whole(name: str) -> None:
    """Small enough to ship, whole, described, with a card."""
    path = registry.model_file(name)
    assert path.stat().st_size <= 20e6
    assert path.with_suffix(".md").is_file()
    model = load_model(name)
    assert model.spec.name == name
    assert model.spec.license
    assert model.spec.gsd_m
    image = torch.rand(1, len(model.spec.bands), 64, 64)
    network = model.network
    given = (image,)
    if model.spec.is_refiner:
        assert model.spec.refinement["model"] in list_models()
        assert read_spec(model.spec.refinement["model"]).refiner == name
        side = 64 // network.latent_stride
        noise = torch.randn(1, network.latent_channels, side, side)
        given = (image, torch.zeros(1, 64, 64, dtype=torch.uint8), noise)
    with torch.inference_mode():
        assert torch.isfinite(network(*given)).all()


@pytest.mark.parametrize("name", registry.earlier_versions())
def test_earlier_versions_stay(name: str) -> None:
    earlier, now = load_model(name), load_model(name.partition("@")[0])
    assert earlier.spec.class_names == now.spec.class_names
    assert earlier.sha256() != now.sha256()
    assert name in run("models", "list").stdout
    assert name not in list_models()


def run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_show_tells_all(model_path: Path) -> None:
    shown = run("models", "show", model_path)
    assert shown.exit_code == 0, shown.output
    for words in ("tiny", "red, green, blue", "0.3 m (0.2 to 0.5 m)", "1 field", "CC0-1.0", "miou: 0.512"):
        assert words in shown.stdout
    assert file_sha256(model_path) in shown.stdout
    values = json.loads(run("models", "show", model_path, "--json").stdout)
    assert values["scores"] == {"test": {"miou": 0.51234}}
    assert values["file"]["bytes"] == model_path.stat().st_size


def test_show_has_scores_by_place_and_what_confidences_are_worth(model_path: Path) -> None:
    spec = read_spec(model_path)
    scores = {
        "places": {"kampala": {"score": 0.753, "trained": False}, "dubai": {"score": 0.6, "trained": True}},
        "calibration": {"ece_before": 0.083, "ece_after": 0.035},
    }
    path = model_path.with_name("known.safetensors")
    registry.rewrite_spec(model_path, path, replace(spec, scores=scores, temperature=1.9))
    shown = run("models", "show", path).stdout
    assert "by place: dubai 0.60*, kampala 0.75" in shown
    assert "expected calibration error 0.035 (0.083 without temperature 1.9)" in shown
    assert load_model(path).spec.temperature == 1.9
    scores = {"places": [1], "calibration": {"ece_before": "x"}}  # by a file that is not trusted
    registry.rewrite_spec(model_path, path, replace(spec, scores=scores), overwrite=True)
    assert run("models", "show", path).exit_code == 0


def test_list_names_the_bundled_models() -> None:
    assert "building, land, road, vegetation, water" in run("models", "list").stdout
    listed = json.loads(run("models", "list", "--json").stdout)
    assert [item["name"] for item in listed] == list(list_models())
    classes = {item["name"]: item["classes"] for item in listed}
    assert classes["landcover"] == ["building", "land", "road", "vegetation", "water"]


def test_show_of_no_model_fails(tmp_path: Path) -> None:
    shown = run("models", "show", tmp_path / "absent.safetensors")
    assert shown.exit_code == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("rsseg: error: model ")


def test_the_hash_of_weights_follows_every_change(model_path: Path) -> None:
    model, same = load_model(model_path), load_model(model_path)
    first = model.sha256()
    assert model.sha256() == first == same.sha256()
    with torch.no_grad():
        next(model.network.parameters()).add_(1)
    assert model.sha256() != first
    assert replace(same, spec=replace(same.spec, name="other")).sha256() != first
