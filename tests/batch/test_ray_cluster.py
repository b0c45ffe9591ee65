"""What is told where there is no Ray, or no cluster."""

import time

import pytest

from rsseg_cli.batch import ray_cluster
from rsseg_cli.batch.ray_cluster import connected
from rsseg_cli.batch.ray_engine import RayEngine
from rsseg_cli.errors import UsageError


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: nothing answers there"),
        ("127.0.0.1", "needs auto or host:port"),
        ("ray://127.0.0.1:10001", "run rsseg on a machine of the cluster"),
    ],
)
def test_no_cluster_is_reported_at_once(address, words):
    pytest.importorskip("ray")
    start = time.monotonic()
    with pytest.raises(UsageError) as caught, connected(address, None):
        pass
    assert str(caught.value).startswith(f"--ray-address {address}: ")
    assert words in str(caught.value)
    assert time.monotonic() - start < 30


def test_without_ray_the_command_that_installs_it_is_reported(monkeypatch):
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Ray is not installed; pip install 'rsseg\[ray\]'"):
        RayEngine()


def test_a_device_that_workers_cannot_have_is_refused():
    with pytest.raises(UsageError, match="--device cuda:1: with --engine ray it is one of auto, cpu, cuda"):
        RayEngine(device="cuda:1")
