"""Compiled networks: equal to torch's, alone in their batch, kept on disk, never another network's."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.inference import compiled, compiled_cache
from rsseg_cli.inference.engine import Engine, Scaling
from rsseg_cli.inference.refiner import RefinerEngine
from rsseg_cli.inference.runtime import architecture_of, choose, has_bfloat16
from rsseg_cli.inference.windows import Window
from rsseg_cli.models import BicorSeg, BicorSegConfig, LiteRefinerConfig
from rsseg_cli.weights import ModelSpec, registry, save_model

SCALING = Scaling(factors=(1 / 60,) * 3, offsets=(-2.0,) * 3)
REFINER = {
    "classes": 3, "encoder": "test_efficientnet", "codec_channels": 16, "widths": (16, 16, 32), "middle": 1,
    "window_px": 32, "steps": 2,
}  # fmt: skip
COMPILED = ("openvino", "onnxruntime")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Path]]]:
    """A cache of the test's own; lists its entries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled._loaded.clear()
    yield lambda: sorted(compiled_cache.cache_folder().glob("*"), key=lambda path: path.stat().st_size)
    compiled._loaded.clear()


def segmenter(**sizes: Any) -> BicorSeg:
    settings = {"classes": 3, "encoder": "test_efficientnet", "channels": 32, "neck": "conv"} | sizes
    return BicorSegConfig(**settings).build().eval()


def tiles(count: int = 1, height: int = 64, width: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 255, (3, height, width)).astype(np.uint8) for _ in range(count)]


def scores(network: Any, inputs: list[Any], runtime: str, dtype: str = "float32", **more: Any) -> np.ndarray:
    skip_without(runtime)
    config = PredictConfig(device="cpu", runtime=runtime, dtype=dtype)
    with Engine(network, classes=3, scaling=SCALING, config=config, **more) as engine:
        return engine.run(inputs).numpy()


def skip_without(runtime: str) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("runtime", COMPILED)
@pytest.mark.parametrize("sizes", [{}, {"topk_ratio": 0.1}, {"neck": "published"}], ids=str)
def test_logits_and_heatmaps_are_those_of_torch(runtime: str, sizes: dict[str, Any]) -> None:
    network = segmenter(**sizes)
    for height, width in ((64, 96), (128, 32)):
        for heatmaps in (False, True):
            inputs = tiles(1, height, width)
            expected = scores(network, inputs, "torch", heatmaps=heatmaps)
            found = scores(network, inputs, runtime, heatmaps=heatmaps)
            np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("runtime", COMPILED)
@pytest.mark.parametrize("steps", [None, 3])
def test_refined_maps_are_those_of_torch(runtime: str, steps: int | None) -> None:
    skip_without(runtime)
    network = LiteRefinerConfig(**REFINER).build().eval()
    check_refined(network, runtime, steps, 64, 96)


@pytest.mark.parametrize("runtime", COMPILED)
def test_refiners_that_look_at_smaller_images_are_compiled_for_each_shape(runtime: str) -> None:
    skip_without(runtime)
    closer = {"channels": 32, "layers": 1, "neck": "conv"}
    sizes = {"closer": closer, "closer_scales": (0.5, 1.0), "closer_share": 0.5}
    network = LiteRefinerConfig(**REFINER, **sizes).build().eval()
    for height, width in ((64, 96), (128, 64)):
        check_refined(network, runtime, None, height, width)


def check_refined(network: Any, runtime: str, steps: int | None, height: int, width: int) -> None:
    windows = [
        Window(tile, np.random.default_rng(1).integers(0, 3, tile.shape[1:]).astype(np.uint8), 0, 32)
        for tile in tiles(2, height, width)
    ]
    found = []
    for library in ("torch", runtime):
        with RefinerEngine(
            network, order=(0, 1, 2), scaling=SCALING, config=RefineConfig(steps=steps), samples=2,
            run=PredictConfig(device="cpu", runtime=library, dtype="float32"), uncertainty=True,
        ) as engine:  # fmt: skip
            found.append(engine.run(windows).numpy())
    np.testing.assert_allclose(found[1], found[0], atol=5e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tile_does_not_depend_on_its_batch(dtype: str) -> None:
    if dtype == "bfloat16" and not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    network, inputs = segmenter(), tiles(3)
    together = scores(network, inputs, "openvino", dtype)
    for tile, expected in zip(inputs, together, strict=True):
        np.testing.assert_array_equal(scores(network, [tile], "openvino", dtype)[0], expected)


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_bfloat16_is_near_and_is_not_float32() -> None:
    network, inputs = segmenter(), tiles(1, 64, 64)
    exact = scores(network, inputs, "openvino", "float32")
    near = scores(network, inputs, "openvino", "bfloat16")
    again = scores(network, inputs, "openvino", "float32")
    assert 0 < np.abs(near - exact).max() < 0.1 * np.ptp(exact)
    np.testing.assert_array_equal(again, exact)


def test_entries_keep_their_precision(empty_cache: Callable[[], list[Path]]) -> None:
    network, inputs = segmenter(), tiles()
    expected = scores(network, inputs, "openvino", "float32")
    compiled._loaded.clear()
    np.testing.assert_array_equal(scores(network, inputs, "openvino", "float32"), expected)
    np.testing.assert_allclose(expected, scores(network, inputs, "torch"), atol=1e-4)


def test_changed_weights_are_another_network() -> None:
    network, inputs = segmenter(), tiles()
    before = scores(network, inputs, "openvino")
    with torch.no_grad():
        network.decoder.class_table.mul_(3)
    after = scores(network, inputs, "openvino")
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, scores(network, inputs, "torch"), atol=2e-4)


def test_a_network_is_as_it_was(empty_cache: Callable[[], list[Path]]) -> None:
    network = segmenter().train()
    scores(network, tiles(), "openvino")
    assert all(part.training for part in network.modules())
    assert all(weight.is_contiguous() for weight in network.parameters())


def test_a_model_file_is_not_loaded_again(empty_cache: Callable[[], list[Path]], tmp_path: Path) -> None:
    network = segmenter()
    spec = replace(
        ModelSpec.for_network(classes=["a", "b", "c"], name="small"),
        architecture="bicor-seg",
        network=vars(network.config),
    )
    path = save_model(tmp_path / "m.safetensors", network, spec, dtype="float32")
    first = registry.StoredModel(path)
    expected = scores(first, tiles(), "openvino")
    assert "network" in vars(first)
    compiled._loaded.clear()
    second = registry.StoredModel(path)
    np.testing.assert_array_equal(scores(second, tiles(), "openvino"), expected)
    assert "network" not in vars(second)
    np.testing.assert_allclose(expected, scores(second, tiles(), "torch"), atol=2e-4)


class Derived(BicorSeg):
    """A user's network that computes something else."""

    def explain(self, image: torch.Tensor) -> Any:
        explanation = super().explain(image)
        return explanation._replace(logits=-explanation.logits)


def test_other_networks_run_on_torch_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    network = Derived(segmenter().config).eval()
    expected = scores(network, tiles(), "torch")
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(scores(network, tiles(), "auto"), expected)
        assert not caplog.messages
        np.testing.assert_array_equal(scores(network, tiles(), "openvino"), expected)
    assert caplog.messages == [
        "Derived is computed by torch: --runtime openvino takes BiCoR-Seg and IDGBR lite"
    ]


def test_weights_of_another_type_run_on_torch() -> None:
    assert architecture_of(segmenter()) == "bicor-seg"
    assert architecture_of(LiteRefinerConfig(**REFINER).build()) == "idgbr-lite"
    assert architecture_of(segmenter().double()) == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "openvino", "dtype": "float16"}, "--dtype float16: --runtime openvino computes in"),
        ({"runtime": "onnxruntime", "dtype": "bfloat16"}, "--dtype bfloat16: --runtime onnxruntime computes"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], words: str) -> None:
    skip_without(settings["runtime"])
    with pytest.raises(UsageError, match=words):
        choose(PredictConfig(device="cpu", **settings))


def test_auto_is_openvino_in_the_precision_of_the_cpu() -> None:
    choice = choose(PredictConfig(device="cpu"))
    assert choice.of("bicor-seg") == ("cpu", "openvino", "bfloat16" if has_bfloat16() else "float32")
    assert choice.of("") == choice.of("external") == ("cpu", "torch", "float32")
    assert choose(PredictConfig(device="cpu", runtime="torch")).of("bicor-seg") == ("cpu", "torch", "float32")
    assert choose(PredictConfig(device="cpu", dtype="float16")).of("bicor-seg") == ("cpu", "torch", "float16")


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx512f avx512_bf16", True), ("amx_bf16", True), ("fpu avx2", False)]
)
def test_bfloat16_is_known_by_the_flags_of_the_cpu(tmp_path: Path, flags: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"model name : some amx_bf16\nflags\t\t: {flags}\n")
    assert has_bfloat16(str(path)) is expected
    assert not has_bfloat16(str(tmp_path / "none"))


def test_an_entry_comes_back(empty_cache: Callable[[], list[Path]]) -> None:
    assert compiled_cache.read("one") is None
    compiled_cache.write("one", b"content")
    compiled_cache.write("two", b"other")
    assert (compiled_cache.read("one"), compiled_cache.read("two")) == (b"content", b"other")
    assert compiled_cache.cache_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of another", "folder"])
def test_a_damaged_entry_is_made_again(empty_cache: Callable[[], list[Path]], damage: str) -> None:
    network, inputs = segmenter(), tiles()
    expected = scores(network, inputs, "openvino")
    entries = empty_cache()
    assert len(entries) == 2  # the graph, the compiled network
    first, second = entries
    contents = {path: path.read_bytes() for path in entries}
    for path, other in ((first, second), (second, first)):
        content = contents[path]
        if damage == "folder":
            path.unlink()
            path.mkdir()
            continue
        changed = {
            "cut": content[:-1], "changed": content[:50] + b"?" + content[51:], "empty": b"",
            "of another": contents[other],
        }[damage]  # fmt: skip
        path.write_bytes(changed)
    compiled._loaded.clear()
    np.testing.assert_array_equal(scores(network, inputs, "openvino"), expected)
    if damage != "folder":
        assert all(path.stat().st_size > compiled_cache.DIGEST_BYTES for path in (first, second))
        compiled._loaded.clear()
        np.testing.assert_array_equal(scores(network, inputs, "openvino"), expected)


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_a_folder_that_others_may_write_is_not_used(
    empty_cache: Callable[[], list[Path]], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = compiled_cache.cache_folder()
    folder.parent.mkdir(parents=True)
    if kind == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.touch()
    network, inputs = segmenter(), tiles()
    with caplog.at_level(logging.INFO):
        found = scores(network, inputs, "openvino")
    np.testing.assert_allclose(found, scores(network, inputs, "torch"), atol=2e-4)
    assert not [*tmp_path.glob("**/*.bin")]
    assert sum("compiled networks are not kept there" in text for text in caplog.messages) == 1


def test_entries_that_were_not_used_for_longest_make_room(
    empty_cache: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_cache, "MAX_BYTES", 1000)
    for number, key in enumerate("abc"):
        compiled_cache.write(key, bytes(250))
        newest = max(empty_cache(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    assert compiled_cache.read("a") is not None  # used last now
    compiled_cache.write("d", bytes(250))
    assert [key for key in "abcd" if compiled_cache.read(key) is not None] == ["a", "c", "d"]
    compiled_cache.write("e", bytes(501))
    assert compiled_cache.read("e") is None


@pytest.mark.parametrize("left", ["graph", "compiled", "both"])
def test_what_is_left_of_the_cache_changes_no_bit(empty_cache: Callable[[], list[Path]], left: str) -> None:
    network, inputs = segmenter(), tiles()
    expected = scores(network, inputs, "openvino")
    compiled_key = [path for path in empty_cache() if b"<net " not in path.read_bytes()[:200]]
    for path in empty_cache():
        if left != "both" and (path in compiled_key) != (left == "compiled"):
            path.unlink()
    compiled._loaded.clear()
    np.testing.assert_array_equal(scores(network, inputs, "openvino"), expected)
