import multiprocessing
import random
import threading

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from amc_search import CapUnreachable, EvolutionarySampler, Space, ascend, is_feasible, random_policies, uniform
from amc_search import history as history_module
from amc_search.history import policy_of as policy_of_trial
from amc_search.sampler import PROPOSER, search_space
from tests.search.world import Macs, Ridge, Truth, cap_at, chain, dense_cost

optuna.logging.set_verbosity(optuna.logging.ERROR)


def sampler_of(groups=6, seed=0, **options):
    space, cost = chain(groups)
    return EvolutionarySampler(
        space,
        (cap_at(space, cost, 0.35),),
        lambda: Ridge(members=4),
        **{"seed": seed, "startup": 6, "batch": 4} | options,
    )


def study_in(folder, sampler, name="s"):
    return optuna.create_study(
        storage=f"sqlite:///{folder}/study.db",
        study_name=name,
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )


def study_of(sampler):
    return optuna.create_study(sampler=sampler, direction="maximize")


def policy_of(trial, space):
    return tuple(trial.params[name] for name in space.names)


def suggested(trial, sampler):
    return np.array([trial.suggest_int(n, d.low, d.high, step=d.step) for n, d in sampler.search_space.items()])


def accuracy_of(sampler):
    truth = Truth.drawn(len(sampler.space), 0)
    return lambda trial: float(truth(suggested(trial, sampler), sampler.space))


def test_no_policy_is_measured_twice_and_a_new_sampler_resumes(tmp_path):
    """A study continued by a new process' sampler holds no duplicate, legal policies only, and every function."""
    sampler = sampler_of()
    study_in(tmp_path, sampler).optimize(accuracy_of(sampler), n_trials=11)
    again = sampler_of()
    study = study_in(tmp_path, again)
    study.optimize(accuracy_of(again), n_trials=11)
    policies = [policy_of(trial, sampler.space) for trial in study.trials]
    assert len(policies) == len(set(policies)) == 22
    assert sampler.space.is_legal(np.array(policies)).all()
    shares = [trial.user_attrs[PROPOSER] for trial in study.trials]
    assert shares[:6] == ["start"] * 6 and set(shares[6:]) == {"improvement", "random"}
    assert is_feasible(np.array(policies[6:]), sampler.caps).all()


def test_an_interrupted_study_goes_the_same_way(tmp_path):
    """The randomness of a trial comes from seed and number: a resumed study proposes what an unbroken one does."""
    whole, parts = sampler_of(seed=5), sampler_of(seed=5)
    unbroken = study_in(tmp_path, whole, "whole")
    unbroken.optimize(accuracy_of(whole), n_trials=12)
    study_in(tmp_path, parts, "parts").optimize(accuracy_of(parts), n_trials=8)
    resumed = study_in(tmp_path, sampler_of(seed=5), "parts")
    resumed.optimize(accuracy_of(parts), n_trials=4)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in unbroken.trials]


def test_the_predictor_is_fitted_once_a_batch(tmp_path):
    """Six trials of start, then eight in batches of four: two fits, though two samplers take turns."""
    fits = []

    class Counted(Ridge):
        def fit(self, policies, accuracy):
            fits.append(len(policies))
            super().fit(policies, accuracy)

    samplers = [sampler_of(), sampler_of()]
    for sampler in samplers:
        sampler.make_predictor = Counted
    for turn in range(14):
        study_in(tmp_path, samplers[turn % 2]).optimize(accuracy_of(samplers[0]), n_trials=1)
    assert fits == [6, 10]


def test_pending_trials_are_not_proposed_again(tmp_path):
    """Twenty trials asked and none told are twenty policies; the start never needs a result."""
    sampler = sampler_of()
    study = study_in(tmp_path, sampler)
    trials = [study.ask(sampler.search_space) for _ in range(20)]
    assert len({policy_of(trial, sampler.space) for trial in trials}) == 20


def test_threads_with_their_own_samplers_do_not_collide(tmp_path):
    """Four workers that start together on one database choose different policies, without having told any."""
    chosen, errors = [], []
    study_in(tmp_path, sampler_of())
    barrier = threading.Barrier(4)

    def work():
        try:
            sampler = sampler_of()
            study = study_in(tmp_path, sampler)
            barrier.wait()
            for _ in range(5):
                chosen.append(policy_of(study.ask(sampler.search_space), sampler.space))
        except Exception as error:  # a thread's error would be lost
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(chosen) == len(set(chosen)) == 20


def work_in_process(folder):
    torch.set_num_threads(1)
    sampler = sampler_of()
    study_in(folder, sampler).optimize(accuracy_of(sampler), n_trials=5)


def test_processes_share_a_study(tmp_path):
    """Two processes measure ten different policies between them."""
    sampler = sampler_of()
    study = study_in(tmp_path, sampler)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work_in_process, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len({policy_of(trial, sampler.space) for trial in study.trials}) == len(study.trials) == 10


def test_failed_and_nan_trials_are_never_learned_from():
    """A failed policy gets one more chance, is then left alone, and no value comes from it."""
    sampler = sampler_of()
    study = study_of(sampler)
    for outcome in (float("nan"), None, 0.5):
        trial = study.ask(sampler.search_space)
        if outcome is None:
            study.tell(trial, state=TrialState.FAIL)
        elif outcome == outcome:
            study.tell(trial, outcome)
        else:
            with pytest.warns(UserWarning, match="nan"):
                study.tell(trial, outcome)
    first, second, third = (policy_of(trial, sampler.space) for trial in study.trials)
    assert first == second != third
    history = sampler.history(study)
    assert history.policies.tolist() == [list(third)] and history.accuracy.tolist() == [0.5]


def test_a_study_whose_every_trial_failed_still_goes_on():
    """Without one value the start is followed by random policies."""
    sampler = sampler_of(startup=2)
    study = study_of(sampler)
    for _ in range(8):
        study.tell(study.ask(sampler.search_space), state=TrialState.FAIL)
    assert len({policy_of(trial, sampler.space) for trial in study.trials}) == 4


def test_an_exhausted_space_is_repeated_not_refused():
    """All four feasible policies first, then those over the cap, then repetitions."""
    space = Space(("a", "b"), (3, 3), (1, 1))
    cost = Macs(*(torch.eye(2, dtype=torch.float64) for _ in range(2)))
    sampler = EvolutionarySampler(space, (cap_at(space, cost, 0.55),), Ridge, seed=0, startup=2, batch=4)
    study = study_of(sampler)
    study.optimize(lambda trial: suggested(trial, sampler).sum() / 6, n_trials=12)
    policies = [policy_of(trial, space) for trial in study.trials]
    assert len(set(policies[:9])) == 9
    assert [trial.user_attrs[PROPOSER] for trial in study.trials[9:]] == ["repeat"] * 3


def test_enqueued_trials_and_single_valued_groups_are_respected():
    """What the user enqueues is measured first and not proposed again; a group without choice is no trouble."""
    space = Space(("fixed", "a", "b", "c"), (4, 64, 64, 64), (4, 4, 4, 4))
    cost = Macs(*(torch.eye(4, dtype=torch.float64) for _ in range(2)))
    sampler = EvolutionarySampler(space, (cap_at(space, cost, 0.4),), Ridge, seed=0, startup=3)
    study = study_of(sampler)
    study.enqueue_trial(dict(zip(space.names, (4, 64, 64, 64), strict=True)))
    study.optimize(lambda trial: suggested(trial, sampler).sum() / 196, n_trials=6)
    policies = [policy_of(trial, space) for trial in study.trials]
    assert policies[0] == (4, 64, 64, 64) and len(set(policies)) == 6


def test_a_known_dense_accuracy_is_learned_and_not_measured_again():
    """With the dense accuracy given, no trial is spent on the dense network."""
    sampler = sampler_of(dense_accuracy=0.9)
    study = study_of(sampler)
    study.optimize(accuracy_of(sampler), n_trials=8)
    assert tuple(sampler.space.sizes) not in {policy_of(trial, sampler.space) for trial in study.trials}
    assert 0.9 in sampler.history(study).accuracy


def test_another_budget_uses_the_same_study(tmp_path):
    """A sampler with another cap learns from what is there and proposes near its own cap, not from the old batch."""
    sampler = sampler_of()
    study_in(tmp_path, sampler).optimize(accuracy_of(sampler), n_trials=8)
    space, cost = chain(6)
    smaller = EvolutionarySampler(space, (cap_at(space, cost, 0.15),), Ridge, seed=1, startup=6, batch=4)
    study = study_in(tmp_path, smaller)
    study.optimize(accuracy_of(smaller), n_trials=4)
    assert is_feasible(np.array([policy_of(trial, space) for trial in study.trials[8:]]), smaller.caps).all()


@pytest.mark.parametrize(
    "options",
    [
        {"acquisition": "luck"},
        {"batch": 0},
        {"startup": 0},
        {"dense_accuracy": 76.1},
        {"shares": {"luck": 1}},
    ],
)
def test_wrong_arguments_are_refused_at_the_door(options):
    """Every rule of the constructor is checked in the constructor."""
    with pytest.raises(ValueError, match="but got"):
        sampler_of(**options)


def test_an_unreachable_cap_is_refused_at_the_door():
    """No trial is spent on a budget that cannot be met."""
    space, cost = chain(4)
    with pytest.raises(CapUnreachable):
        EvolutionarySampler(space, (cap_at(space, cost, -0.01),), Ridge, seed=0)


def test_a_study_that_minimises_is_refused():
    """The value is an accuracy."""
    sampler = sampler_of()
    with pytest.raises(ValueError, match="direction='maximize'"):
        optuna.create_study(sampler=sampler).ask(sampler.search_space)


def test_a_parameter_that_is_no_group_is_refused():
    """The sampler knows nothing of it, so it does not invent a value."""
    study = study_of(sampler_of())
    with pytest.raises(ValueError, match="must be a group"):
        study.ask().suggest_float("learning_rate", 0, 1)


def test_sampling_leaves_global_randomness_alone():
    """Neither random nor numpy nor torch is seeded or drawn from."""
    sampler = sampler_of()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    study_of(sampler).optimize(accuracy_of(sampler), n_trials=12)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.slow
def test_48_trials_and_an_ascent_beat_random_search_and_uniform():
    """In a noisy additive concave world with twelve groups, in the mean over seeds and nearly every time."""
    margins = []
    for seed in range(5):
        space, cost = chain(12, seed)
        caps = (cap_at(space, cost, 0.3),)
        truth, noise = Truth.drawn(12, seed), np.random.default_rng([seed, 1])
        sampler = EvolutionarySampler(space, caps, Ridge, seed=seed)
        study = study_of(sampler)

        def measure(trial, sampler=sampler, truth=truth, noise=noise):
            return float(truth(suggested(trial, sampler), sampler.space) + noise.normal(0, 0.003))

        study.optimize(measure, n_trials=48)
        history = sampler.history(study)
        ridge = Ridge()
        ridge.fit(space.fractions(history.policies), torch.as_tensor(history.accuracy).float())
        feasible = is_feasible(history.policies, caps)
        warm = history.policies[feasible][np.argsort(-history.accuracy[feasible])]
        ours = truth(ascend(ridge, space, caps, seed=seed, warm=warm).policies[0], space)
        drawn = truth(random_policies(space, caps, 48, np.random.default_rng([seed, 2])), space).max()
        margins.append((ours - drawn, ours - truth(uniform(space, caps), space)))
    over_random, over_uniform = np.array(margins).T
    assert over_random.mean() > 0.003 and (over_random > 0).sum() >= 4
    assert (over_uniform > 0.005).all()
    assert dense_cost(space, cost) > caps[0].limit


def test_trials_that_were_stopped_early_are_learned_from():
    """A pruned trial with a value is a value and its policy is not proposed again; one without is a failure."""
    sampler = sampler_of()
    study = study_of(sampler)
    for value in (0.25, None, 0.5):
        trial = study.ask(sampler.search_space)
        if value is not None:
            trial.report(value, 100)
        study.tell(trial, state=TrialState.PRUNED)
    first, second, third = (policy_of(trial, sampler.space) for trial in study.trials)
    history = sampler.history(study)
    assert history.accuracy.tolist() == [0.25, 0.5] and history.policies.tolist() == [list(first), list(third)]
    assert second == third != first


def test_a_group_that_may_be_dropped_is_a_parameter_from_zero():
    """The others begin at one step; every legal count can be stored."""
    space = Space(("kept", "dropped"), (16, 32), (4, 8), (False, True))
    kept, dropped = search_space(space).values()
    assert (kept.low, kept.high, kept.step) == (4, 16, 4)
    assert (dropped.low, dropped.high, dropped.step) == (0, 32, 8)


def test_one_fit_a_batch_is_enough_for_two_workers(tmp_path):
    """Who comes while another worker fits draws from the reserve of the last batch instead of fitting too."""
    one, two = sampler_of(), sampler_of()
    fits, drawn = [], []

    class Busy(Ridge):
        def fit(self, policies, accuracy):
            fits.append(len(policies))
            if len(fits) == 2:
                drawn.append(study_in(tmp_path, two).ask(two.search_space))
            super().fit(policies, accuracy)

    one.make_predictor = two.make_predictor = Busy
    study_in(tmp_path, one).optimize(accuracy_of(one), n_trials=12)
    study = study_in(tmp_path, one)
    assert fits == [6, 10] and len(drawn) == 1
    policies = [policy_of(trial, one.space) for trial in study.trials]
    assert len(policies) == len(set(policies)) == 13


def test_a_long_study_is_read_once(tmp_path, monkeypatch):
    """Finished trials are turned into arrays once: a proposal for a study of many costs no more than a look."""
    sampler = sampler_of(startup=40)
    study = study_in(tmp_path, sampler)
    study.optimize(accuracy_of(sampler), n_trials=20)
    read = []

    def noted(trial, space):
        read.append(trial.number)
        return policy_of_trial(trial, space)

    monkeypatch.setattr(history_module, "policy_of", noted)
    study.optimize(accuracy_of(sampler), n_trials=1)
    assert set(read) <= {19, 20}
