import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import TrialState

from amc.job.recipe import amended, load_recipe, parse_recipe, resolved_toml, shareable
from amc.job.run import Run
from amc.job.worker import work
from amc.study.heartbeat import HEARTBEAT, name_of
from amc.study.search import sampler_of
from amc.study.trials import NOT_NEEDED, Study
from amc.study.worker_pool import DEATHS_IN_A_ROW, WorkerPool
from amc.system.errors import ModelError, RunError, UsageError
from amc.system.progress import Silent
from amc_search.history import CLAIM
from tests.interrupts import heed_interrupts
from tests.study.test_study import PROTOCOL, SPACE, fake, opened, random_search

ROOT = Path(__file__).parents[2]


def shared(run: Run, url: str, total: int) -> Study:
    """The study of a finished run's network at a URL, as `amc compress --study` begins it."""
    study = Study.of(run.job.measure, url)
    recipe = amended(shareable(run.recipe), {"search.trials": total})
    study.describe(resolved_toml(recipe), run.metrics["dense"]["measure_accuracy"])
    return study


def test_a_worker_needs_the_url_alone(tiny_run: Run, tmp_path: Path) -> None:
    """Recipe and protocol stand in the study: the worker prepares the network itself and measures what is missing."""
    url = f"sqlite:///{tmp_path}/s.db"
    study = shared(tiny_run, url, 6)
    sampler = sampler_of(study, tiny_run.job.caps, tiny_run.recipe.search)
    study.run(tiny_run.job.measure, sampler, 3, Silent())
    done = work(url, Silent())
    assert (done["trials"], done["measured_here"]) == (6, 3)
    assert len({trial.policy for trial in study.trials}) == 6
    assert work(url, Silent(), overrides={"search.trials": 7})["measured_here"] == 1


def test_a_run_folder_is_a_study_too(tiny_run: Run) -> None:
    """Its groups and moments are read and not taken anew; a study that has its total needs nobody."""
    assert work(str(tiny_run.folder), Silent())["measured_here"] == 0


def test_the_recipe_in_a_study_tells_no_password(tiny_run: Run) -> None:
    """Neither the storage's URL nor the run folder go into the study."""
    recipe = amended(tiny_run.recipe, {"search.study": "postgresql://me:secret@db/x"})
    told = parse_recipe(resolved_toml(shareable(recipe)))
    assert told.search.study is None and told.out is None
    assert told == amended(told, {}) and told.model == recipe.model


def test_another_network_is_refused_by_name(tiny_run: Run, tmp_path: Path) -> None:
    """One line says what differs here and there, and what mends it."""
    url = f"sqlite:///{tmp_path}/s.db"
    shared(tiny_run, url, 6)
    with pytest.raises(RunError, match=r"weights_digest is .* and there .*--weights") as caught:
        work(url, Silent(), overrides={"model.weights": "none"})
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="batchnorm_images"):
        work(url, Silent(), overrides={"recovery.batchnorm_images": 50})


def test_several_studies_are_named(tiny_run: Run, tmp_path: Path) -> None:
    """A storage with two asks for one by name; with none it says how to begin one."""
    url = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=url, study_name="somebody-else")
    with pytest.raises(UsageError, match="amc compress --study"):
        work(url, Silent())
    study = shared(tiny_run, url, 1)
    other = Study(url, None, PROTOCOL, SPACE)
    with pytest.raises(UsageError, match="--study must name one") as caught:
        work(url, Silent())
    assert all(f"amc-{one.protocol.digest}" in str(caught.value) for one in (study, other))
    assert "tests.tiny:network on tests.tiny:pictures" in str(caught.value)
    with pytest.raises(UsageError, match="holds no recipe"):
        work(url, Silent(), study=f"amc-{PROTOCOL.digest}")
    assert work(url, Silent(), study=f"amc-{study.protocol.digest}")["trials"] == 1


def test_the_total_is_never_passed(tmp_path: Path) -> None:
    """While the last trials are in other hands nobody begins another one; if they fail, somebody does."""
    url = f"sqlite:///{tmp_path}/s.db"
    one, two = opened(tmp_path, url), opened(tmp_path, url)
    random_search(one, 3)
    assert one._begin(optuna.samplers.RandomSampler(0), 4) is not None
    assert two._begin(optuna.samplers.RandomSampler(1), 4) is None
    one.mark_failed(lambda name: name == one.name)
    assert two._begin(optuna.samplers.RandomSampler(1), 4) is not None
    assert NOT_NEEDED not in two.failures and two.failures == ["interrupted"]


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_result_that_was_given_up_is_kept_once(tmp_path: Path, meanwhile: bool) -> None:
    """A trial taken for dead that ends after all is stored anew, unless another worker has its policy by then."""
    one, two = opened(tmp_path, f"sqlite:///{tmp_path}/s.db"), opened(tmp_path, f"sqlite:///{tmp_path}/s.db")
    policy = np.array([2, 4])

    def late(asked):
        two.mark_failed(lambda name: name == one.name)
        if meanwhile:
            two.measure_one(policy, fake)
        return fake(asked)

    one.measure_all([policy], late)
    assert one.trials == [fake(policy)]
    assert len(one.failures) == 1 + meanwhile


def test_a_stopped_trial_is_pruned_with_what_it_gave(tmp_path: Path) -> None:
    """It counts towards the total, is read back, and is measured in full when it is asked for by name."""
    study, policy = opened(tmp_path), np.array([2, 4])
    stopped = replace(fake(policy), stopped=True, images=40)
    study.run(
        lambda asked: replace(fake(asked), stopped=True, images=40), optuna.samplers.RandomSampler(0), 2, Silent()
    )
    assert all(trial.stopped and trial.images == 40 for trial in opened(tmp_path).trials)
    (first, _) = study._study.get_trials()
    assert first.state == TrialState.PRUNED and first.intermediate_values == {40: first.value}
    study.measure_all([policy], lambda asked: stopped)
    assert study.measure_one(policy, fake) == fake(policy)


def test_only_the_folders_own_trials_are_buried_when_it_is_opened_again(tmp_path: Path) -> None:
    """In a shared storage, a worker elsewhere keeps its running trial."""
    url = f"sqlite:///{tmp_path}/s.db"
    ours, theirs = Study(url, tmp_path / "run", PROTOCOL, SPACE), Study(url, None, PROTOCOL, SPACE)
    ours._create([2, 4])
    theirs._create([4, 4])
    Study(url, tmp_path / "run", PROTOCOL, SPACE, alone=True)
    states = {tuple(trial.system_attrs[CLAIM]): trial.state for trial in ours._study.get_trials()}
    assert states == {(2, 4): TrialState.FAIL, (4, 4): TrialState.RUNNING}
    assert theirs._study.get_trials()[1].system_attrs[HEARTBEAT][0].startswith(name_of(None))


def crew_of(code: str, buried: list[int], number: int = 2) -> WorkerPool:
    leash = "from amc.study.worker_pool import start_watchdog; start_watchdog(); import os, signal, sys, time; "
    return WorkerPool([sys.executable, "-c", leash + code], number, buried.append)


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = monotonic() + seconds
    while not holds():
        assert monotonic() < deadline
        sleep(0.02)


def test_a_killed_worker_is_replaced_and_its_trials_are_buried() -> None:
    """The others go on; at the end all are gone and all were buried."""
    buried: list[int] = []
    with crew_of("time.sleep(600)", buried) as crew:
        victim, other = (worker.process for worker in crew.workers)
        victim.kill()
        victim.wait()
        crew.poll(0)
        assert buried == [victim.pid]
        assert crew.workers[0].process.poll() is None and crew.workers[1].process is other
    assert all(worker.process.poll() is not None for worker in crew.workers) and len(buried) == 3


def test_a_workers_own_error_is_told() -> None:
    """It ended with a reason and a code: the others are stopped and the reason is ours."""
    with crew_of("print('amc: the loss is NaN', file=sys.stderr); sys.exit(5)", []) as crew:
        with pytest.raises(ModelError, match=r"^the loss is NaN$"):
            until(lambda: crew.poll(0))


def test_workers_that_keep_dying_end_the_search() -> None:
    """Eight deaths without a trial between are no chance."""
    with crew_of("os.kill(os.getpid(), signal.SIGKILL)", [], number=1) as crew:
        with pytest.raises(ModelError, match=rf"{DEATHS_IN_A_ROW} in a row were killed \(signal 9\)"):
            until(lambda: crew.poll(0))


def test_a_worker_ends_with_who_started_it() -> None:
    """Kill -9 leaves no orphans."""
    leash = "from amc.study.worker_pool import start_watchdog; start_watchdog(); import time; time.sleep(600)"
    code = (
        "import sys, time; from amc.study.worker_pool import WorkerPool; "
        f"crew = WorkerPool([sys.executable, '-c', {leash!r}], 2, print); crew.__enter__(); "
        "print('ready', flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout and parent.stdout.readline() == b"ready\n"
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(children) == 2 and not psutil.wait_procs(children, timeout=30)[1]


def compress(run: Run, folder: Path, workers: int, trials: int) -> subprocess.Popen[bytes]:
    recipe = amended(run.recipe, {"out": str(folder), "search.trials": trials, "search.workers": workers})
    path = folder.with_suffix(".toml")
    path.write_text(resolved_toml(recipe))
    places = os.pathsep.join(str(place) for place in (ROOT, ROOT / "search", ROOT / "predictor"))
    command = [sys.executable, "-m", "amc.cli", "compress", "--recipe", str(path), "--quiet"]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": places}, stderr=subprocess.PIPE, preexec_fn=heed_interrupts
    )


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_the_same_command_goes_on(tiny_run: Run, tmp_path: Path) -> None:
    """Exit 130, no process left, and the finished run has exactly its trials."""
    folder = tmp_path / "run"
    process = compress(tiny_run, folder, 2, 12)

    def begun() -> bool:
        return (folder / "study.db").exists() and len(Study(None, folder, protocol, space).trials) >= 2

    protocol, space = tiny_run.job.measure.protocol(), tiny_run.job.space
    until(begun, 240)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130 and b"goes on" in words
    assert not psutil.wait_procs(children, timeout=30)[1]
    again = compress(tiny_run, folder, 3, 12)
    _, words = again.communicate(timeout=600)
    assert again.returncode == 0, words
    study = Study(None, folder, protocol, space)
    assert max(Counter(trial.policy for trial in study.trials).values()) == 1
    assert load_recipe(folder / "recipe.toml").search.workers == 2
