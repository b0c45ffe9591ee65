"""ModelSpec: what is written is read back, and nothing that a stranger writes gets through unchecked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsseg_cli.errors import ModelError
from rsseg_cli.weights.spec import MAX_SPEC_BYTES, PALETTE, ClassSpec, ModelSpec


def example() -> ModelSpec:
    return ModelSpec(
        name="fields",
        architecture="bicor-seg",
        classes=(ClassSpec("bâtiment", (1, 2, 3)), ClassSpec("land", (0, 255, 9))),
        bands=("red", "nir"),
        network={"classes": 2, "encoder": "resnet18", "topk_ratio": 0.02},
        scaling="unit",
        mean=(0.1, 0.2),
        std=(0.3, 0.4),
        gsd_m=0.3,
        gsd_range_m=(0.2, 0.5),
        description="two\nlines",
        scores={"test": {"miou": 0.5, "per_class": [0.4, 0.6]}},
        training={"epochs": 3},
        refiner="edges",
    )


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(example().to_json()), **values})


def test_json_round_trip() -> None:
    assert ModelSpec.from_json(example().to_json()) == example()


def test_scores_that_are_not_finite_become_null() -> None:
    spec = replace(example(), scores={"iou": [math.nan, 0.5], "f1": {"a": math.inf}})
    assert json.loads(spec.to_json())["scores"] == {"iou": [None, 0.5], "f1": {"a": None}}


def test_spec_for_own_network_leaves_pixels_alone() -> None:
    spec = ModelSpec.for_network(classes=["a", ClassSpec("b", (9, 9, 9))], bands=("nir",))
    assert spec.architecture == "external"
    assert (spec.mean, spec.std, spec.scaling, spec.gsd_m) == ((0.0,), (1.0,), "unit", None)
    assert spec.classes == (ClassSpec("a", PALETTE[0]), ClassSpec("b", (9, 9, 9)))


def test_palette_repeats() -> None:
    colours = [item.colour for item in ClassSpec.from_names([str(index) for index in range(25)])]
    assert colours[10] == colours[20] == PALETTE[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"spec_version": 2}, "version 2"),
        ({"spec_version": None}, "version None"),
        ({"more": 1}, "unknown fields in the model description: more"),
        ({"architecture": "unet"}, "'unet' is unknown"),
        ({"architecture": ["bicor-seg"]}, "Expected `str`"),
        ({"classes": []}, "0 classes"),
        ({"classes": [{"name": str(index), "colour": [0, 0, 0]} for index in range(255)]}, "255 classes"),
        ({"classes": [{"name": "a", "colour": [0, 0, 0]}] * 2}, "must be different"),
        ({"classes": [{"name": "", "colour": [0, 0, 0]}]}, "not empty"),
        ({"classes": [{"name": "a"}]}, "wrong value"),
        ({"classes": ["a", "b"]}, "wrong value"),
        ({"classes": "ab"}, "Expected `array`"),
        ({"classes": {"a": 1}}, "wrong value"),
        ({"classes": [{"name": "a", "colour": [0, 0, 256]}]}, "0 to 255"),
        ({"classes": [{"name": "a", "colour": [0, 0, -1]}]}, "0 to 255"),
        ({"classes": [{"name": "a", "colour": [0, 0, 1.5]}]}, "Expected `int`"),
        ({"classes": [{"name": "a", "colour": [0, 0, True]}]}, "Expected `int`"),
        ({"classes": [{"name": "a", "colour": [0, 0, 10**400]}]}, "0 to 255"),
        ({"classes": [{"name": "a", "colour": [0, 0]}]}, "wrong value"),
        ({"classes": [{"name": "a\x1b[2J", "colour": [0, 0, 0]}]}, "control characters"),
        ({"classes": [{"name": "a\nb", "colour": [0, 0, 0]}]}, "printable"),
        ({"classes": [{"name": "a" * 101, "colour": [0, 0, 0]}]}, "printable"),
        ({"name": 3}, "Expected `str`"),
        ({"name": ""}, "printable"),
        ({"name": "\ud800"}, "is no JSON"),
        ({"bands": "rgb"}, "Expected `array`"),
        ({"bands": ["red", 1]}, "Expected `str`"),
        ({"bands": []}, "0 bands"),
        ({"bands": None}, "Expected `array`"),
        ({"mean": [0.1]}, "1 means"),
        ({"mean": None}, "wrong value"),
        ({"mean": [True, 0.1]}, "Expected `float`"),
        ({"mean": [10**400, 0.1]}, "wrong value"),
        ({"std": [0.0, 1]}, "above 0"),
        ({"std": [-1.0, 1]}, "above 0"),
        ({"gsd_m": "0.3"}, "wrong value"),
        ({"gsd_m": 0}, "metres above 0"),
        ({"gsd_m": -0.3}, "metres above 0"),
        ({"gsd_m": None}, "must enclose"),
        ({"enlargement": 0.5}, "needs 1 to 2.5"),
        ({"enlargement": 3}, "needs 1 to 2.5"),
        ({"gsd_range_m": [0.4, 0.5]}, "must enclose"),
        ({"gsd_range_m": [0.1]}, "wrong value"),
        ({"gsd_range_m": [0.1, 0.5, 0.6]}, "wrong value"),
        ({"scaling": "log"}, "'log'"),
        ({"network": []}, "Expected `object`"),
        ({"scores": 3}, "Expected `object`"),
        ({"training": {"a": "\x07"}}, "control characters"),
        ({"training": {"\x07": 1}}, "control characters"),
        ({"refiner": 1}, "wrong value"),
        ({"description": "x" * 100_001}, "100001 characters"),
    ],
)
def test_wrong_values_are_refused_with_a_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as error:
        ModelSpec.from_json(changed(**values), where="m.safetensors")
    assert words in str(error.value)
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"spec_version": 1}',
        '{"spec_version": NaN}',
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"spec_version": ' + "9" * 10_000 + "}",
        " " * (MAX_SPEC_BYTES + 1),
        changed(scores={"iou": math.nan}),
        changed(scores={"iou": 1}).replace('"iou": 1', '"iou": 1e999'),
        changed(gsd_m=1).replace('"gsd_m": 1,', '"gsd_m": 1e999,'),
        changed(scores={"deep": 0}).replace('"deep": 0', '"deep": ' + "[" * 200 + "]" * 200),
    ],
)
def test_text_that_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="model file"):
        ModelSpec.from_json(text)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(field=st.sampled_from(sorted(json.loads(example().to_json()))), value=plain)
def test_any_value_is_taken_or_refused(field: str, value: Any) -> None:
    try:
        spec = ModelSpec.from_json(changed(**{field: value}))
    except ModelError:
        return
    assert ModelSpec.from_json(spec.to_json()) == spec
