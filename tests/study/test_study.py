import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import optuna
import pytest
import torch
from numpy.typing import NDArray
from optuna.trial import TrialState

from amc.study.trial import Protocol, Trial
from amc.study.trials import FAILURES_IN_A_ROW, Study
from amc.system.errors import ModelError, StorageError
from amc.system.files import write_json, write_whole
from amc.system.progress import Silent
from amc_search import Space

SPACE = Space(("stem", "block.1"), (16, 32), (2, 4))
PROTOCOL = Protocol(
    model="m", weights_digest="w", data_digest="d", groups_digest="g", importance="magnitude", fold=True,
    moment_images=8, batchnorm_images=8, measure_images=8, batch_size=4, compute="cpu float32", seed=0, versions=("1",),
)  # fmt: skip
Policy = NDArray[np.int64]
ROOT = Path(__file__).parents[2]


def fake(policy: Policy) -> Trial:
    """A measurement by formula."""
    share = float(policy.sum()) / 48
    return Trial(tuple(policy.tolist()), {"macs": float(policy.prod())}, share, 1 - share, {"cut": 0.1})


def opened(folder: Path, url: str | None = None, protocol: Protocol = PROTOCOL) -> Study:
    return Study(url, folder, protocol, SPACE, alone=url is None)


def begin_trial(study: Study) -> None:
    """A trial that runs, and that nobody will end."""
    study._study._storage.create_new_trial(study._study._study_id)


def random_search(study: Study, total: int, measure: Callable[[Policy], Trial] = fake, seed: int = 0) -> None:
    study.run(measure, optuna.samplers.RandomSampler(seed), total, Silent())


def test_trials_survive_reopening(tmp_path: Path) -> None:
    """What was measured is read back field by field, and only what is missing is measured."""
    study = opened(tmp_path)
    random_search(study, 6)
    again = opened(tmp_path)
    assert again.trials == study.trials and len(again.trials) == 6
    assert all(trial == fake(np.array(trial.policy)) for trial in again.trials)
    asked: list[Policy] = []
    random_search(again, 8, lambda policy: (asked.append(policy), fake(policy))[1], seed=1)
    random_search(again, 5, lambda policy: pytest.fail("enough trials are there"))
    assert len(asked) == 2 and len(again.trials) == 8


def test_every_policy_asked_for_is_legal(tmp_path: Path) -> None:
    """A measurement gets int64 keep-counts on the grid, in the space's order."""

    def check(policy: Policy) -> Trial:
        assert policy.dtype == np.int64 and SPACE.is_legal(policy[None]).all()
        return fake(policy)

    study = opened(tmp_path)
    random_search(study, 10, check)
    assert len(study.trials) == 10


def test_another_tool_reads_the_study(tmp_path: Path) -> None:
    """One Optuna study, named by the protocol; integer parameters by group name, the accuracy as value."""
    study = opened(tmp_path)
    random_search(study, 3)
    plain = optuna.load_study(study_name=f"amc-{PROTOCOL.digest}", storage=f"sqlite:///{tmp_path}/study.db")
    assert plain.best_value == max(trial.accuracy for trial in study.trials)
    assert set(plain.best_params) == {"stem", "block.1"}
    assert plain.user_attrs["protocol"]["weights_digest"] == "w"


@pytest.mark.parametrize("error", [
    RuntimeError("shapes do not meet\nsecond line"), MemoryError("out of memory"),
    torch.OutOfMemoryError("CUDA out of memory"), ModelError("the loss is nan"),
])  # fmt: skip
def test_a_failing_measurement_is_kept_as_failed(tmp_path: Path, error: Exception) -> None:
    """The study goes on; the trial has its reason in one line and is never used."""
    calls: list[int] = []

    def sometimes(policy: Policy) -> Trial:
        calls.append(1)
        if len(calls) % 3 == 2:
            raise error
        return fake(policy)

    study = opened(tmp_path)
    random_search(study, 5, sometimes)
    assert len(study.trials) == 5 and len(calls) == 7
    assert study.failures == [f"{type(error).__name__}: {str(error).splitlines()[0]}"] * 2
    assert opened(tmp_path).failures == study.failures


@pytest.mark.parametrize("field", ["accuracy", "loss"])
def test_a_result_that_is_no_number_is_a_failure(tmp_path: Path, field: str) -> None:
    """NaN is never a result; the reason says so."""
    study = opened(tmp_path)
    bad = np.array([8, 16])
    assert study.measure_all([bad], lambda policy: replace(fake(policy), **{field: float("nan")})) == []
    assert study.trials == [] and "finite" in study.failures[0] and "nan" in study.failures[0]
    with pytest.raises(ModelError, match="finite"):
        study.measure_one(bad, lambda policy: replace(fake(policy), **{field: float("nan")}))
    assert study.measure_one(bad, fake) == fake(bad)


def test_eight_failures_in_a_row_end_the_search(tmp_path: Path) -> None:
    """Then the machine is at fault: the last reason is told, in one line."""

    def never(policy: Policy) -> Trial:
        raise RuntimeError("no kernel image\nfor this device")

    study = opened(tmp_path)
    with pytest.raises(ModelError, match="RuntimeError: no kernel image") as caught:
        random_search(study, 50, never)
    assert "\n" not in str(caught.value) and len(study.failures) == FAILURES_IN_A_ROW == 8


def test_seven_failures_and_a_success_do_not(tmp_path: Path) -> None:
    """The count starts anew with every success."""
    calls: list[int] = []

    def rarely(policy: Policy) -> Trial:
        calls.append(1)
        if len(calls) % 8:
            raise RuntimeError("not yet")
        return fake(policy)

    study = opened(tmp_path)
    random_search(study, 2, rarely)
    assert (len(study.trials), len(study.failures)) == (2, 14)


def test_given_policies_are_read_where_they_are_known(tmp_path: Path) -> None:
    """Only new ones are measured, each once, and the answer is in the order asked."""
    study = opened(tmp_path)
    asked: list[tuple[int, ...]] = []

    def note(policy: Policy) -> Trial:
        asked.append(tuple(policy.tolist()))
        return fake(policy)

    one, two, three = (np.array(counts) for counts in ([16, 32], [2, 4], [8, 8]))
    assert study.measure_all([one, two], note) == [fake(one), fake(two)]
    assert study.measure_all([three, two, one, three], note) == [fake(three), fake(two), fake(one), fake(three)]
    assert opened(tmp_path).measure_all([two], note) == [fake(two)]
    assert asked == [(16, 32), (2, 4), (8, 8)]
    assert study.measure_all([], note) == []


def test_a_policy_that_cannot_be_measured_is_missing_from_the_answer(tmp_path: Path) -> None:
    """The others are answered, and it may be tried again."""

    def picky(policy: Policy) -> Trial:
        if policy[0] == 2:
            raise RuntimeError("too small")
        return fake(policy)

    study = opened(tmp_path)
    one, two = np.array([16, 32]), np.array([2, 4])
    assert study.measure_all([two, one], picky) == [fake(one)]
    assert study.measure_all([two, one], fake) == [fake(two), fake(one)]


def test_an_interrupted_list_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C among given policies: the next session measures what it asks for, and nothing that was left."""

    def stop(policy: Policy) -> Trial:
        if policy[0] == 4:
            raise KeyboardInterrupt
        return fake(policy)

    study = opened(tmp_path)
    given = [np.array([counts, 32]) for counts in (2, 4, 6, 8)]
    with pytest.raises(KeyboardInterrupt):
        study.measure_all(given, stop)
    again = opened(tmp_path)
    assert [trial.policy for trial in again.trials] == [(2, 32)] and again.failures == ["interrupted"]
    assert again.measure_one(np.array([10, 32]), fake).policy == (10, 32)
    assert len(again.trials) == 2


def test_a_trial_left_running_is_failed_on_reopening(tmp_path: Path) -> None:
    """A killed process's trial counts as interrupted and is never used."""
    study = opened(tmp_path)
    begin_trial(study)
    again = opened(tmp_path)
    assert again.failures == ["interrupted"] and again.trials == []
    assert not again._study.get_trials(states=(TrialState.RUNNING,))


@pytest.mark.parametrize("name", [field.name for field in fields(Protocol)])
def test_another_protocol_is_another_study(tmp_path: Path, name: str) -> None:
    """A change of any field changes the digest, so that trials which do not compare never meet."""
    value = getattr(PROTOCOL, name)
    other = {str: f"{value}x", bool: not value, int: 77, tuple: ("2",)}[type(value)]
    changed = replace(PROTOCOL, **{name: other})
    assert changed.digest != PROTOCOL.digest == replace(PROTOCOL).digest
    if name == "seed":
        random_search(opened(tmp_path), 2)
        assert opened(tmp_path, protocol=changed).trials == []


def test_two_studies_share_a_storage_by_url(tmp_path: Path) -> None:
    """What one worker measured another one reads, and a running trial of a living worker is left alone."""
    url = f"sqlite:///{tmp_path}/shared.db"
    one, two = opened(tmp_path / "a", url), opened(tmp_path / "b", url)
    begin_trial(one)
    one.measure_all([np.array([2, 4]), np.array([4, 4]), np.array([6, 4])], fake)
    assert opened(tmp_path / "c", url).trials == two.trials == one.trials
    assert two.failures == []


@pytest.mark.parametrize("url", [
    "nonsense", "sqlite:////no/such/folder/s.db", "postgresql+psycopg2://me:secret@127.0.0.1:9/db",
    "mysql+nodriver://me:secret@127.0.0.1/db", "redis://127.0.0.1:9",
])  # fmt: skip
def test_a_storage_that_cannot_be_reached_is_one_line(tmp_path: Path, url: str) -> None:
    """Wrong and unreachable URLs are told by name, without the password in them."""
    with pytest.raises(StorageError) as caught:
        opened(tmp_path, url)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A study file that cannot be made, or is none, is told with its path."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"study\.db") as caught:
        opened(tmp_path / "file")
    assert "\n" not in str(caught.value)
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


SEARCH = """
import sys, time
from pathlib import Path
import optuna
from amc.system.progress import Silent
from tests.study.test_study import fake, opened

folder, total, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def measure(policy):
    with open(folder / "log", "a") as log:
        print("begin", *policy, file=log, flush=True)
    time.sleep(seconds)
    with open(folder / "log", "a") as log:
        print("end", *policy, file=log, flush=True)
    return fake(policy)
opened(folder).run(measure, optuna.samplers.BruteForceSampler(seed=0), total, Silent())
"""


def search_process(folder: Path, total: int, seconds: float) -> subprocess.Popen[bytes]:
    places = os.pathsep.join(str(place) for place in (ROOT, ROOT / "search", ROOT / "predictor"))
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, "-c", SEARCH, str(folder), str(total), str(seconds)], env=environment)


def test_a_killed_search_loses_nothing_and_measures_nothing_twice(tmp_path: Path) -> None:
    """Kill -9 in the middle of a trial: all finished ones stay, the same command goes on behind them."""
    log = tmp_path / "log"
    first = search_process(tmp_path, 12, 0.3)
    deadline = monotonic() + 60
    while monotonic() < deadline and (not log.exists() or log.read_text().count("begin") < 4):
        sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = [trial.policy for trial in opened(tmp_path).trials]
    assert len(kept) >= 3 and opened(tmp_path).failures == ["interrupted"]
    assert search_process(tmp_path, 12, 0.0).wait() == 0
    study = opened(tmp_path)
    finished = [trial.policy for trial in study.trials]
    assert finished[: len(kept)] == kept and len(finished) == 12
    begun = Counter(line.removeprefix("begin ") for line in log.read_text().splitlines() if line.startswith("begin"))
    assert max(begun[" ".join(map(str, policy))] for policy in kept) == 1
    assert max(Counter(finished).values()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, leaving: int = 0) -> Path:
    """Fill a disk to the last byte but `leaving`."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leaving))
    return filler


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    """A file that cannot be written whole is not written at all, and no scraps stay."""
    path = small_disk / "metrics.json"
    write_json(path, {"old": 1})
    filler = fill(small_disk, 8192)
    with pytest.raises(StorageError, match="disk is full") as caught:
        write_whole(path, lambda file: file.write(bytes(100_000)))
    assert "\n" not in str(caught.value)
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["filler", "metrics.json"]
    filler.unlink()
    write_json(path, {"new": 2})
    assert "new" in path.read_text()


def test_a_full_disk_ends_a_search_and_loses_no_trial(small_disk: Path) -> None:
    """The storage says so in one line; with room again, the same search goes on."""
    study = opened(small_disk)
    random_search(study, 3)
    filler = fill(small_disk)
    with pytest.raises(StorageError, match="disk is full") as caught:
        random_search(study, 400, seed=1)
    assert "\n" not in str(caught.value)
    filler.unlink()
    again = opened(small_disk)
    assert len(again.trials) >= 3 and again.trials[:3] == study.trials[:3]
    random_search(again, len(again.trials) + 2, seed=2)
