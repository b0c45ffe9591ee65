"""The mean of several runs' weights."""

from dataclasses import asdict

import pytest
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, load_model, save_model
from rsseg_cli.weights.registry import average_models


def save(path, seed, *, classes=("a", "b"), channels=32):
    torch.manual_seed(seed)
    config = BicorSegConfig(classes=len(classes), encoder="test_efficientnet", channels=channels)
    described = ModelSpec.for_network(classes=list(classes))
    spec = ModelSpec(
        name=path.stem, architecture="bicor-seg", classes=described.classes, network=asdict(config),
        scores={"test": {"miou": 0.5}},
    )  # fmt: skip
    return save_model(path, BicorSeg(config), spec, dtype="float32")


def test_each_weight_is_the_mean(tmp_path):
    paths = [save(tmp_path / f"{seed}.safetensors", seed) for seed in range(3)]
    mean = average_models(paths[0], paths[1:])
    parts = [load_model(path).network.state_dict() for path in paths]
    for name, tensor in mean.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), sum(part[name].double() for part in parts) / 3)
    assert mean.spec.scores == {}  # not those of the first
    assert mean.spec.training["averaged"] == [str(path) for path in paths]


def test_checkpoints_of_runs_join_in(tmp_path):
    model, other = (save(tmp_path / f"{seed}.safetensors", seed) for seed in range(2))
    state = load_model(other).network.state_dict()
    content = {"state_dict": {f"network.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt")
    by_file, by_checkpoint = average_models(model, [other]), average_models(model, [tmp_path / "last.ckpt"])
    for name, tensor in by_file.network.state_dict().items():
        assert torch.equal(tensor, by_checkpoint.network.state_dict()[name])


def test_what_does_not_fit_is_refused(tmp_path):
    model = save(tmp_path / "a.safetensors", 0)
    with pytest.raises(UsageError, match="needs two or more"):
        average_models(model, [])
    with pytest.raises(
        ModelError, match="classes a, c; the first has bands red, green, blue and classes a, b"
    ):
        average_models(model, [save(tmp_path / "c.safetensors", 0, classes=("a", "c"))])
    with pytest.raises(ModelError, match="another network"):
        average_models(model, [save(tmp_path / "w.safetensors", 0, channels=16)])
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match=r"bad\.ckpt"):
        average_models(model, [tmp_path / "bad.ckpt"])
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(ModelError, match="no state_dict"):
        average_models(model, [tmp_path / "list.ckpt"])


def test_from_the_command_line(tmp_path):
    paths = [str(save(tmp_path / f"{seed}.safetensors", seed)) for seed in range(2)]
    target = tmp_path / "mean.safetensors"
    done = CliRunner().invoke(app, ["models", "average", *paths, "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "mean of 2 models" in done.output
    assert load_model(target).spec.name == "mean"
    again = CliRunner().invoke(app, ["models", "average", *paths, "-o", str(target)])
    assert again.exit_code == 1
    assert "exists" in again.output
