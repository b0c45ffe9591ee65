"""Progress of a run: the time left as h:mm."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rsseg_cli.training.trainer import RunProgress, hours_and_minutes


class Module:
    history = ({"epoch": 9, "loss": 0.5},)

    def progress_text(self, scores):
        return "val mIoU 0.250"


def test_a_resumed_run_counts_its_own_pace(capsys):
    """Epochs 9 and 10 of 10 at 50 s each: after the first 50 s are left, as h:mm rounded up."""
    seconds = iter([1000.0, 1050.0])
    run = SimpleNamespace(max_epochs=10, current_epoch=8, is_global_zero=True)
    progress = RunProgress("lines", lambda: next(seconds))
    progress.on_train_start(run, None)
    progress.on_train_epoch_end(run, Module())
    assert capsys.readouterr().err == "epoch 9/10  loss 0.500  val mIoU 0.250  ETA 0:01\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "?"), (0, "0:00"), (1, "0:01"), (60, "0:01"), (61, "0:02"), (3600, "1:00"), (90061, "25:02")],
)
def test_hours_and_minutes(seconds, shown):
    assert hours_and_minutes(seconds) == shown
