import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from amc.study import database
from amc.study import storage as store
from amc.study.storage import end_trial, open_storage, patiently, place
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.system.errors import StorageError
from amc.system.progress import Silent
from amc_search import EvolutionarySampler
from tests import postgres
from tests.search.world import Ridge, cap_at, chain
from tests.study.test_study import PROTOCOL, SPACE, fake, random_search

KINDS = {"a": IntDistribution(0, 8, step=4), "b": IntDistribution(1, 5)}


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    with postgres.running() as started:
        yield started


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/s.db"
    started: postgres.Postgres = request.getfixturevalue("server")
    return started.url


def test_quick_reads_are_optunas_own_reads(url: str, request: pytest.FixtureRequest) -> None:
    """Trial by trial and field by field, whatever their state; ranges that change are read Optuna's way."""
    name = request.node.name
    study = optuna.create_study(storage=open_storage(url), study_name=name)
    for number in range(6):
        trial = study.ask()
        trial.suggest_int("b", 1, 5)
        if number % 2:
            trial.suggest_int("a", 0, 8, step=4)
        trial.set_user_attr("note", {"seconds": [0.5, number]})
        if number == 3:
            trial.report(0.25, 7)
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif number != 5:
            study.tell(trial, 0.1 * number)
    assert study.get_trials() == optuna.load_study(storage=url, study_name=name).get_trials()
    assert [list(trial.distributions) for trial in study.get_trials()][1] == ["b", "a"]
    study.ask({"x": FloatDistribution(0, 1)})
    study.tell(study.ask({"x": FloatDistribution(0, 2)}), float("inf"))
    assert study.get_trials() == optuna.load_study(storage=url, study_name=name).get_trials()


def test_a_trial_is_ended_whole_and_once(url: str, request: pytest.FixtureRequest) -> None:
    """All that it gave is there with its state; who comes later is told so and changes nothing."""
    study = optuna.create_study(storage=open_storage(url), study_name=request.node.name)
    trial = study.ask()
    params = {"a": (4, KINDS["a"]), "b": (5, KINDS["b"])}
    args = study._storage, trial._trial_id
    assert end_trial(*args, TrialState.PRUNED, 0.5, params, {"loss": 1.5}, step=40)
    assert not end_trial(*args, TrialState.COMPLETE, 0.7, {}, {"loss": 2.5})
    assert not end_trial(*args, TrialState.FAIL)
    (found,) = optuna.load_study(storage=url, study_name=request.node.name).get_trials()
    assert (found.state, found.value, found.params) == (TrialState.PRUNED, 0.5, {"a": 4, "b": 5})
    assert (found.user_attrs, found.intermediate_values) == ({"loss": 1.5}, {40: 0.5})
    assert found.datetime_complete is not None


class Failing:
    """Fails with each message in turn, then answers."""

    def __init__(self, *messages: str) -> None:
        self.messages, self.calls = list(messages), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.messages:
            raise OperationalError("SELECT 1", {}, Exception(self.messages.pop(0)))
        return "answer"


def test_a_storage_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked is asked again until it is answered; that it was away is said, without a password."""
    monkeypatch.setattr(store, "sleep", lambda seconds: None)
    said: list[str] = []
    act = Failing("connection refused", "the database system is starting up")
    assert patiently(act, "postgresql://me:secret@db/x", said.append) == "answer"
    assert act.calls == 3 and len(said) == 2 and "secret" not in "".join(said)


@pytest.mark.parametrize("message", ["database or disk is full", "could not extend file: No space left on device"])
def test_a_full_disk_is_told_at_once(message: str) -> None:
    """Waiting does not mend it; free space does."""
    act = Failing(message)
    with pytest.raises(StorageError, match=r"disk is full.*nothing was lost"):
        patiently(act, "postgresql://db/x", lambda text: None)
    assert act.calls == 1


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the storage's own words."""
    monkeypatch.setattr(store, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match="connection refused") as caught:
        patiently(Failing(*["connection refused"] * 100), "postgresql://db/x", lambda text: None, patience=0.0)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 6


def test_errors_that_are_not_the_storages_pass_at_once() -> None:
    """A mistake of ours is no outage."""
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: str(1 / 0), "sqlite:///x", lambda text: None)


def test_a_locked_sqlite_file_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another writer holds the file for longer than a write waits: the trial is stored when it lets go."""
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.1)
    study = Study(None, tmp_path, PROTOCOL, SPACE)
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.0, lambda: other.execute("ROLLBACK"))
    release.start()
    assert study.measure_one(np.array([2, 4]), fake) == fake(np.array([2, 4]))
    release.join()
    other.close()


@pytest.mark.parametrize("wrong", ["grpc://nowhere", "grpc://:13000", "grpc://host:port"])
def test_a_proxy_is_written_with_host_and_port(wrong: str) -> None:
    """The form is told."""
    with pytest.raises(StorageError, match="grpc://HOST:PORT"):
        open_storage(wrong)


def test_a_place_is_shown_without_its_password() -> None:
    """Paths of SQLite files as paths."""
    assert place("postgresql+psycopg2://me:secret@db:5432/x") == "postgresql+psycopg2://me:***@db:5432/x"
    assert place("sqlite:////data/study.db") == "/data/study.db"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """Optuna's proxy in front of a SQLite file."""
    grpc = pytest.importorskip("grpc", reason="the proxy needs grpcio and protobuf")
    pytest.importorskip("google.protobuf", reason="the proxy needs grpcio and protobuf")
    from optuna.storages._grpc.server import make_server

    port = 20_000 + hash(str(tmp_path)) % 20_000
    with ThreadPoolExecutor(4) as pool:
        served = make_server(open_storage(f"sqlite:///{tmp_path}/s.db"), "localhost", port, pool)
        served.start()
        assert grpc
        yield f"grpc://localhost:{port}"
        served.stop(None).wait()


def test_a_study_is_shared_through_a_proxy(proxy: str) -> None:
    """Two workers that know only the proxy read each other's trials, stopped and failed ones included."""
    one, two = (Study(proxy, None, PROTOCOL, SPACE) for _ in range(2))
    random_search(one, 3)
    assert len(two.trials) == 3 and two.trials == one.trials
    random_search(two, 5, seed=1)
    assert one.trials == two.trials and len(one.trials) == 5


class World:
    """Six groups under a cap, a measurement by formula that takes a moment, and what was asked of it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.space, self.cost = chain(6)
        self.seconds = seconds
        self.asked: list[tuple[int, ...]] = []

    def measure(self, policy: NDArray[np.int64]) -> Trial:
        sleep(self.seconds)
        self.asked.append(tuple(policy.tolist()))
        share = float(policy.sum() / self.space.high.sum())
        return Trial(tuple(policy.tolist()), {"macs": 1.0}, share, 1 - share, {"cut": 0.0})

    def work(self, url: str, total: int) -> None:
        """As one worker with the product's sampler."""
        caps = (cap_at(self.space, self.cost, 0.4),)
        sampler = EvolutionarySampler(self.space, caps, Ridge, seed=0, startup=6, batch=4)
        Study(url, None, PROTOCOL, self.space).run(self.measure, sampler, total, Silent())


def workers_share(url: str, total: int) -> None:
    worlds = [World(0.01) for _ in range(3)]
    before = Study(url, None, PROTOCOL, worlds[0].space)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda world: world.work(url, total), worlds))
    policies = [policy for world in worlds for policy in world.asked]
    assert len(policies) == len(set(policies)) == total
    assert len(before.trials) == total


def test_three_workers_measure_no_policy_twice_and_no_trial_too_many(tmp_path: Path) -> None:
    """In one SQLite file, side by side."""
    workers_share(f"sqlite:///{tmp_path}/s.db", 16)


@pytest.mark.slow
def test_three_workers_share_a_postgresql_server(server: postgres.Postgres) -> None:
    """As in SQLite."""
    workers_share(server.url, 30)


@pytest.mark.slow
def test_a_database_gone_for_half_a_minute_costs_no_trial(server: postgres.Postgres) -> None:
    """PostgreSQL crashes during a search and comes back after 30 s: the worker waits, and every trial is there once."""
    world, said = World(0.05), list[str]()
    study = Study(server.url, None, replace(PROTOCOL, seed=77), world.space)

    def measure(policy: NDArray[np.int64]) -> Trial:
        if len(world.asked) == 5:
            server.stop()
            threading.Timer(30.0, server.start).start()
        return world.measure(policy)

    progress = Silent()
    progress.say = said.append
    begun = monotonic()
    study.run(measure, optuna.samplers.RandomSampler(0), 12, progress)
    assert monotonic() - begun > 29
    assert len(study.trials) == 12 and [trial.policy for trial in study.trials] == world.asked
    assert any("trying again" in text for text in said) and any("is back" in text for text in said)


@pytest.mark.slow
def test_a_database_gone_for_good_ends_in_one_line(server: postgres.Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience the storage's own words are told, and what was stored is there when it is back."""
    study = Study(server.url, None, replace(PROTOCOL, seed=78), SPACE)
    random_search(study, 3)
    server.stop()
    monkeypatch.setattr(store, "OUTAGE_SECONDS", 2.0)
    with pytest.raises(StorageError, match=r"postgresql.*refused") as caught:
        random_search(study, 6)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    server.start()
    random_search(study, 6)
    assert len(study.trials) == 6


@pytest.mark.parametrize("damage", ["random bytes", "cut off", "middle", "another database"])
def test_a_damaged_file_is_told_as_such(tmp_path: Path, damage: str) -> None:
    """The file, that it is damaged, and the fix, in one line; nothing of its rights."""
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}"
    study = optuna.create_study(study_name="amc-1", storage=open_storage(url))
    for _ in range(40):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    whole = path.read_bytes()
    if damage == "another database":
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("create table version_info (version_info_id integer)")
        connection.close()
    else:
        noise = bytes(np.random.default_rng(0).integers(0, 256, len(whole), dtype=np.uint8))
        parts = {"random bytes": noise, "cut off": whole[:5000], "middle": whole[:4096] + noise[4096:]}
        path.write_bytes(parts[damage])
    with pytest.raises(StorageError, match=r"study\.db is damaged \(.*restore it from a copy") as told:
        storage = open_storage(url)
        patiently(lambda: optuna.load_study(study_name="amc-1", storage=storage).trials, url, lambda text: None, 0.0)
    assert "\n" not in str(told.value) and "right" not in str(told.value)
