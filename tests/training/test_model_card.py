"""The model card: what a run found, did and scored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rsseg_cli.training.cards import model_card
from rsseg_cli.weights import ClassSpec, ModelSpec

CURVE = [{"epoch": epoch, "loss": 2 / epoch, "miou": min(epoch, 6) / 10} for epoch in range(1, 11)]


def spec(**changes):
    scores = {
        "val": {"val_miou": 0.6, "epoch": 6, "seconds": 754.0, "steps": 80},
        "test": {
            "iou": [0.5, 0.25, float("nan")], "f1": [2 / 3, 0.4, float("nan")], "miou": 0.375,
            "mean_f1": 0.533, "overall_accuracy": 0.7,
            "confusion": [[3, 1, 0, 0], [2, 1, 0, 1], [0, 0, 0, 0]],
        },
    }  # fmt: skip
    values = {
        "name": "roofs", "architecture": "bicor-seg",
        "classes": ClassSpec.from_names(["roof", "a|b<i>", "water"]),
        "gsd_m": 0.2, "gsd_range_m": (0.1, 0.3), "license": "CC BY 4.0", "scores": scores,
        "training": {"epochs": 10, "recipe": "default", "computed_on": "CPU, 2 threads", "seed": 7},
    }  # fmt: skip
    return ModelSpec(**{**values, **changes})


def test_a_card_tells_the_run():
    card = model_card(spec(), history=CURVE, table="scenes  3", command="rsseg train bicor-seg --seed 7")
    for line in (
        "# roofs",
        "- **Ground resolution**: 0.2 m a pixel; 0.1 to 0.3 m is run as it is",
        "- **Licence of the weights**: CC BY 4.0",
        "- **Source and licence of the data**: not stated (--data-note)",
        "scenes  3",
        "| roof | 0.500 | 0.667 |",
        "| a\\|b&lt;i> | 0.250 | 0.400 |",
        "| water | absent | absent |",
        "| mean | 0.375 | 0.533 |",
        "| | roof | a\\|b&lt;i> | water | no class |",
        "| roof | 3 | 1 | 0 | 0 |",
        "| 6 | 0.333 | 0.600 |",
        "- Classes that the test scenes do not hold: water.",
        "    rsseg train bicor-seg --seed 7",
        "- **Time**: 12.6 minutes, 80 steps",
        ' "seed": 7',
    ):
        assert line in card.splitlines() or f"{line}." in card.splitlines() or line in card, line
    assert "Best mIoU 0.600 at epoch 6, 0.600 at the last, 10. It had stopped rising" in card
    assert "CPU, 2 threads" in card


def test_a_card_says_the_intervals_of_its_scores():
    given = spec()
    ends = {"roof": [0.41, 0.58], "a|b<i>": [0.2, 0.3], "water": [None, None]}
    given.scores["test"]["intervals"] = {"miou": [0.31, 0.44], "iou": ends, "blocks": 24}

    card = model_card(given, history=CURVE)

    words = (
        "by resampling 24 blocks: mean IoU 0.310 to 0.440; roof 0.410 to 0.580; a\\|b&lt;i> 0.200 to 0.300."
    )
    assert words in card
    assert "95 % intervals" not in model_card(spec(), history=CURVE)


@pytest.mark.parametrize(
    ("best", "words"), [(10, "still rose at the end"), (9, "had stopped"), (1, "had stopped")]
)
def test_whether_validation_still_rose(best, words):
    scores = {"val": {"val_miou": 0.6, "epoch": best}}
    assert words in model_card(spec(scores=scores), history=CURVE)


def test_a_run_that_stopped_early_and_had_no_test():
    values = spec(scores={"val": {"val_miou": 0.6, "epoch": 6}}, training={"epochs": 30})
    card = model_card(values, history=CURVE)
    assert "at the last, 10 of 30, stopped early." in card
    assert "None: no scenes were held out for a test" in card
    assert "validation scenes, which chose the epoch" in card


def test_long_runs_and_many_classes_stay_short():
    names = [f"class {number}" for number in range(200)]
    test = {
        "iou": [0.5] * 200, "f1": [0.5] * 200, "miou": 0.5, "mean_f1": 0.5, "overall_accuracy": 0.5,
        "confusion": np.ones((200, 201), int).tolist(),
    }  # fmt: skip
    long = [{"epoch": epoch, "loss": 1.0, "miou": 0.5} for epoch in range(1, 10_001)]
    scores = {"val": {"val_miou": 0.5, "epoch": 7777}, "test": test}
    card = model_card(
        dataclasses.replace(spec(), classes=ClassSpec.from_names(names), scores=scores), history=long
    )
    assert len(card) < 20_000
    assert "| 7777 | 1.000 | 0.500 |" in card
    assert "| 10000 | 1.000 | 0.500 |" in card
