from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from amc.study import heartbeat as pulse
from amc.study.heartbeat import HEARTBEAT, Heartbeat, HeartbeatMonitor, measured_by, name_of, new_name


class Clock:
    """A steady clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(pulse, "monotonic", found)
    return found


def running(count: int | None) -> list[FrozenTrial]:
    beat = {} if count is None else {HEARTBEAT: ["host::1", count]}
    return [create_trial(state=TrialState.RUNNING, system_attrs=beat)]


def looks(
    watch: HeartbeatMonitor, clock: Clock, every: float, beats: Callable[[int], int | None], times: int = 20
) -> list[int]:
    """At which looks a trial is held for dead."""
    found = []
    for look in range(times):
        found += [look] if watch.dead(running(beats(look))) else []
        clock.now += every
    return found


def test_a_trial_that_beats_is_alive(clock: Clock) -> None:
    """However seldom it is looked at."""
    assert not looks(HeartbeatMonitor(), clock, 1.0, lambda look: look // 10)
    assert not looks(HeartbeatMonitor(), clock, 3600.0, lambda look: look)


@pytest.mark.parametrize("count", [3, None])
def test_a_trial_that_stands_still_for_the_grace_is_dead(clock: Clock, count: int | None) -> None:
    """With or without a pulse ever seen, and not a look before."""
    assert looks(HeartbeatMonitor(), clock, 6.0, lambda look: count)[0] == pulse.GRACE_SECONDS / 6


def test_an_outage_or_a_sleep_of_the_watcher_kills_nobody(clock: Clock) -> None:
    """An hour between two looks counts as half the grace: the others get the time to beat again."""
    watch = HeartbeatMonitor()
    assert not watch.dead(running(1))
    clock.now += 3600
    assert not watch.dead(running(1))
    clock.now += 10
    assert not watch.dead(running(2))


def test_only_running_trials_are_watched(clock: Clock) -> None:
    """What has finished is never dead."""
    watch, done = HeartbeatMonitor(), create_trial(state=TrialState.COMPLETE, value=0.5)
    for _ in range(10):
        assert not watch.dead([done])
        clock.now += 30


def test_a_pulse_beats_while_it_is_entered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The count grows, names who measures, and stays as it is afterwards."""
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.02)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db")
    trial = study.ask()
    name = new_name(tmp_path)
    with Heartbeat(study._storage, trial._trial_id, name):
        while study._storage.get_trial(trial._trial_id).system_attrs.get(HEARTBEAT, ["", 0])[1] < 2:
            pass
    after = study._storage.get_trial(trial._trial_id)
    assert measured_by(after) == name != new_name(tmp_path) and name.startswith(name_of(tmp_path))
    assert study._storage.get_trial(trial._trial_id).system_attrs == after.system_attrs
