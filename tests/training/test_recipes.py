"""Settings: what the recipes hold, what goes before what, and files that read back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given as property_of
from hypothesis import settings as property_settings
from hypothesis import strategies as st

from rsseg_cli.errors import UsageError
from rsseg_cli.training.config import NetworkSettings, TrainConfig
from rsseg_cli.training.recipes import RECIPES, Settings, read_config, recipe_name, resolve_settings

PUBLISHED = [
    ("loveda", {"layers": 2, "topk_ratio": 0.02, "epochs": 30, "batch_size": 8, "learning_rate": 8e-5}),
    ("loveda", {"crop_size": 512, "fisher_last": 1.0}),
    ("vaihingen", {"layers": 2, "topk_ratio": 1.0, "epochs": 45, "batch_size": 4, "learning_rate": 5e-5}),
    ("vaihingen", {"crop_size": 512, "fisher_last": 0.0}),
    ("potsdam", {"layers": 3, "topk_ratio": 1.0, "epochs": 45, "batch_size": 4, "learning_rate": 1e-4}),
    ("potsdam", {"crop_size": 768, "fisher_last": 0.0}),
]
PUBLISHED_FOR_ALL = {
    "arch": "paper",
    "neck": "published",
    "channels": 256,
    "encoder_weights": "imagenet",
    "mean": (),  # ImageNet's
    "std": (),
    "weight_decay": 0.01,
    "lookahead": 5,
    "lookahead_alpha": 0.5,
    "schedule": "epoch",
    "end_rate": 1e-6,
    "warmup": 0.0,
    "encoder_rate": 1.0,
    "ema": 0.0,
    "scales": (0.75, 1.5),
    "turns": True,
    "mosaic": 0.25,
    "redraw_above": 0.75,
    "redraws": 11,
    "colour": 0.0,
    "drawn_share": 0.0,
    "smoothing": 0.05,
    "auxiliary": 0.4,
    "heatmaps": 0.1,
    "fisher": 0.1,
    "embeddings": 0.0,
    "accumulate": 1,
    "crops_per_epoch": "auto",
    "clip": 0.0,
    "patience": 0,
}


def flat(settings):
    return vars(settings.network) | vars(settings.training)


@pytest.mark.parametrize(("dataset", "values"), PUBLISHED)
def test_published_values(dataset, values):
    actual = flat(resolve_settings(recipe="paper", dataset=dataset))
    expected = PUBLISHED_FOR_ALL | values
    assert {key: actual[key] for key in expected} == expected


def test_sections_hold_every_setting_once():
    listed = [key for keys in Settings.SECTIONS.values() for key in keys]
    assert sorted(listed) == sorted(
        field.name for kind in (NetworkSettings, TrainConfig) for field in dataclasses.fields(kind)
    )
    assert all(set(values) <= set(listed) for values in RECIPES.values())


def test_options_go_before_the_file_and_the_file_before_the_recipe(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("batch_size = 2\nepochs = 7\n[losses]\nfisher = 0\n[crops]\nscales = [1, 2]\n")
    settings = resolve_settings({"epochs": 3}, recipe="paper:potsdam", config=config)
    assert (settings.training.epochs, settings.training.batch_size, settings.network.layers) == (3, 2, 3)
    assert (settings.training.fisher, settings.training.scales) == (0.0, (1.0, 2.0))
    assert type(settings.training.fisher) is float


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_saved_settings_read_back_the_same(recipe, tmp_path):
    """Also where the file then stands against other defaults: all values are written."""
    settings = resolve_settings({"arch": 'a"b\\c', "mean": (0.1, 1e-9), "seed": 5}, recipe=recipe)
    config = tmp_path / "settings.toml"
    config.write_text(settings.to_toml(), encoding="utf-8")
    assert resolve_settings(config=config) == settings
    assert resolve_settings(config=config, recipe="paper:loveda").values() == settings.values()


@property_settings(deadline=None)
@property_of(st.floats(1e-12, 10), st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_any_number_and_text_reads_back(tmp_path_factory, rate, name):
    settings = resolve_settings({"learning_rate": rate, "init": name})
    config = tmp_path_factory.mktemp("toml") / "settings.toml"
    config.write_bytes(settings.to_toml().encode())
    assert resolve_settings(config=config) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", ["'epoch'", "epochs", "learning_rate"]),
        ("[training]\ncrop_size = 64", ["[training]", "'crop_size'", "epochs"]),
        ("[trainer]\nepochs = 3", ["[trainer]", "network, training, crops, losses"]),
        ('epochs = "many"', ["epochs = 'many'", "a whole number"]),
        ("epochs = 3.0", ["a whole number"]),
        ("epochs = true", ["a whole number"]),
        ("decay_vectors = 1", ["true or false"]),
        ("scales = [1.0]", ["a list of 2 numbers"]),
        ("scales = [1.0, '2']", ["a list of 2 numbers"]),
        ("mosaic = '1'", ["mosaic", "a number"]),
        ("crops_per_epoch = 'all'", ['a whole number or "auto"']),
        ("schedule = 'year'", ['"step" or "epoch"']),
        ("epochs = ", ["TOML"]),
        ("recipe = 3", ["unknown setting 'recipe'"]),
        ("epochs = 0", ["--epochs 0", "1 to", "run.toml"]),
        ("mosaic = nan", ["--mosaic nan"]),
        ("layers = 33", ["--layers 33"]),
        ("crop_size = 100", ["--crop-size 100"]),
        ("epochs = " + "9" * 400, ["--epochs"]),
        ("mosaic = " + "9" * 400, ["mosaic"]),
        ("batch_size = 1000", ["--crops-per-epoch 800", "1000"]),
    ],
)
def test_errors_name_key_and_what_is_needed(text, words, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(text)
    with pytest.raises(UsageError) as error:
        resolve_settings(config=config)
    for word in words:
        assert word in str(error.value)


def test_a_file_that_is_too_large(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("#" * 1_000_001)
    with pytest.raises(UsageError, match="1000001 bytes"):
        read_config(config)


def test_recipe_by_data():
    assert recipe_name("paper", "potsdam") == "paper:potsdam"
    assert recipe_name("paper:potsdam", "") == "paper:potsdam"
    with pytest.raises(UsageError, match="paper:loveda, paper:vaihingen, paper:potsdam"):
        recipe_name("paper", "")
    with pytest.raises(UsageError, match="paper:vaihingen"):
        recipe_name("published", "loveda")
    assert resolve_settings({"init": "landcover"}).recipe == "finetune"
    assert resolve_settings({"init": "landcover"}, recipe="default").recipe == "default"
    assert resolve_settings().recipe == "default"


def test_every_setting_has_a_type_that_messages_know():
    for key in Settings.types():
        with pytest.raises(UsageError, match=f"{key} = .*; needs"):
            resolve_settings({key: object()})
