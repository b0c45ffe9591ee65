"""What a run tells: the time left of all of it, a line an epoch."""

from __future__ import annotations

import pytest

from rsseg_cli.training.trainer import TimeLeft, hours_and_minutes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_of_the_whole_run():
    clock = Clock()
    left = TimeLeft(epochs=10, clock=clock)
    assert left.seconds(0) is None
    clock.now = 30
    assert left.seconds(0.25) == pytest.approx(120 * 10 - 30)  # within the first epoch by its steps
    clock.now = 150  # 120 of steps and 30 of validation
    left.epoch_done()
    assert left.seconds(0) == pytest.approx(9 * 150)
    clock.now = 180
    assert left.seconds(0.2) == pytest.approx(9 * 150 - 30)
    clock.now = 300
    left.epoch_done()
    assert left.seconds(0) == pytest.approx(8 * 150)


def test_a_resumed_run_counts_its_own_pace():
    clock = Clock()
    left = TimeLeft(epochs=10, done=8, clock=clock)
    clock.now = 50
    left.epoch_done()
    assert left.seconds(0) == pytest.approx(50)
    clock.now = 100
    left.epoch_done()
    assert left.seconds(0) == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "?"), (0, "0:00"), (1, "0:01"), (60, "0:01"), (61, "0:02"), (3600, "1:00"), (90061, "25:02")],
)
def test_hours_and_minutes(seconds, shown):
    assert hours_and_minutes(seconds) == shown
