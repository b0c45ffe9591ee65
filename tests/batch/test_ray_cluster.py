"""Where there is no Ray, or no cluster, or a machine is lost."""

import threading
import time

import pytest
from shared_scenes import assert_same, save_models, task_of, workers_at

from rsseg_cli.batch.ray_engine import ENVIRONMENT, RayEngine, connected
from rsseg_cli.batch.runner import SceneRunner
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
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UsageError, match=r"Ray is not installed; pip install 'rsseg\[ray\]'"):
        RayEngine()


def test_a_device_that_workers_cannot_have_is_refused():
    with pytest.raises(UsageError, match="--device cuda:1: with --engine ray it is one of auto, cpu, cuda"):
        RayEngine(device="cuda:1")


@pytest.mark.slow
def test_the_work_of_a_lost_machine_is_done_by_another(make_raster, tmp_path, monkeypatch):
    """Two nodes of one worker each; one is killed in the middle of a band, and does not come back."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    scene = make_raster(shape=(700, 300))
    model, _ = save_models(tmp_path)
    here, there = (task_of(scene, tmp_path / name, model) for name in ("here", "there"))
    expected = SceneRunner().run(here)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
        assert ray.cluster_resources()["CPU"] == 2

        def lose() -> None:
            deadline = time.monotonic() + 600
            while len(workers_at("band")) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            cluster.remove_node(second, allow_graceful=False)

        loser = threading.Thread(target=lose, daemon=True)
        loser.start()
        [outcome] = RayEngine(split_px=0).run([there])
        loser.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_same(there, outcome, here, expected)
