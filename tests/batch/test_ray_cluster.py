"""What is told where there is no Ray, or no cluster."""

import os
import time

import filelock
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
def test_no_cluster_is_told_at_once(address, words):
    pytest.importorskip("ray")
    start = time.monotonic()
    with pytest.raises(UsageError) as caught, connected(address, None):
        pass
    assert str(caught.value).startswith(f"--ray-address {address}: ")
    assert words in str(caught.value)
    assert time.monotonic() - start < 30


def test_folders_of_clusters_that_were_killed_are_removed(tmp_path):
    """Not one whose run lives, nor one that is being made, nor a link."""
    old = time.time() - 2 * ray_cluster.YOUNG_S
    folders = {
        name: tmp_path / f"{ray_cluster.FOLDER}{name}" for name in ("dead", "living", "young", "other")
    }
    for folder in folders.values():
        (folder / "session").mkdir(parents=True)
        (folder / ray_cluster.LOCK).touch()
    (folders["other"] / ray_cluster.LOCK).unlink()
    (tmp_path / f"{ray_cluster.FOLDER}link").symlink_to(tmp_path)
    for name in ("dead", "living", "other"):
        os.utime(folders[name], (old, old))
    with filelock.FileLock(folders["living"] / ray_cluster.LOCK):
        ray_cluster._remove_stale(tmp_path)
    assert sorted(name for name, folder in folders.items() if folder.exists()) == ["living", "other", "young"]


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Ray is not installed; pip install 'rsseg\[ray\]'"):
        list(RayEngine().run([]))


def test_a_device_that_workers_cannot_have_is_refused():
    with pytest.raises(UsageError, match="--device cuda:1: with --engine ray it is one of auto, cpu, cuda"):
        RayEngine(device="cuda:1")
