"""AMC makes a trained network fit a device.

import amc
space = amc.trace(model, example)                                # groups, exact costs, why a layer is left alone
measure = amc.Measure(space, train=loader, validation=loader)    # any iterable of batches
study = amc.search(space, measure, "50%", trials=64)             # an Optuna study underneath
policy = amc.optimize(study, "50%")                              # seconds; again for every other budget
small = amc.cut(space, policy, recover=measure)                  # an nn.Module

run = amc.compress(model, train=..., validation=..., test=..., budget="50%", out="runs/x")  # all of it, resumable
model = amc.load("runs/x")                                       # no pickle, no tracing
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amc.cascade import load_cascade as load_cascade
    from amc.cost.budget import Budget as Budget
    from amc.cost.budget import format_cost as format_cost
    from amc.cost.budget import parse_budgets as parse_budgets
    from amc.cost.trace import Trace as Trace
    from amc.cost.trace import trace as trace
    from amc.job.api import compress as compress
    from amc.job.api import open_run as open_run
    from amc.job.doctor.examination import examine_network
    from amc.job.job import Job as Job
    from amc.job.job import open_job as open_job
    from amc.job.recipe import Recipe as Recipe
    from amc.job.recipe import load_recipe as load_recipe
    from amc.job.recipe import recipes_folder as recipes_folder
    from amc.job.rounding import recipe_rounding as recipe_rounding
    from amc.job.run import Run as Run
    from amc.job.run import claimed as claimed
    from amc.job.run_folder import read_json as read_json
    from amc.release.archive import load_network, save_network
    from amc.study.heartbeat import measured_by as measured_by
    from amc.study.measure import Measure as Measure
    from amc.study.measure import MeasureSettings as MeasureSettings
    from amc.study.objective import smoothed_objective as smoothed_objective
    from amc.study.optimize import fit_predictor as fit_predictor
    from amc.study.optimize import optimize as optimize
    from amc.study.policy import Policy as Policy
    from amc.study.policy import cut as cut
    from amc.study.search import search as search
    from amc.study.sensitivity import sensitivity_curves as sensitivity_curves
    from amc.study.sensitivity import sensitivity_price as sensitivity_price
    from amc.study.settings import SearchSettings as SearchSettings
    from amc.study.trial import Protocol as Protocol
    from amc.study.trial import Trial as Trial
    from amc.study.trials import Study as Study
    from amc.surgery.flop_counter import count_cut_macs as count_cut_macs
    from amc.system.device import Compute as Compute
    from amc.system.errors import AmcError as AmcError
    from amc.system.errors import BudgetUnreachable as BudgetUnreachable
    from amc.system.errors import DataError as DataError
    from amc.system.errors import GateFailed as GateFailed
    from amc.system.errors import ModelError as ModelError
    from amc.system.errors import RunError as RunError
    from amc.system.errors import StorageError as StorageError
    from amc.system.errors import UsageError as UsageError
    from amc.system.files import write_json as write_json
    from amc.system.files import write_text as write_text
    from amc.system.isolation import LimitExceeded as LimitExceeded
    from amc.system.isolation import Limits as Limits
    from amc.system.isolation import is_out_of_memory as is_out_of_memory
    from amc.system.isolation import isolated_each as isolated_each
    from amc.system.progress import Progress as Progress
    from amc.system.progress import Silent as Silent
    from amc.system.progress import Stage as Stage
    from amc.system.progress import shown as shown
    from amc.system.settings import Settings as Settings
    from amc.train.evaluation import Evaluation as Evaluation
    from amc.train.evaluation import evaluate as evaluate
    from amc.train.evaluation import paired_difference as paired_difference
    from amc.train.settings import FinetuneSchedule as FinetuneSchedule
    from amc.train.settings import RecoverySettings as RecoverySettings
    from amc.train.settings import Schedule as Schedule
    from amc.train.training import optimizer_of as optimizer_of
    from amc.train.training import set_learning_rate as set_learning_rate
    from amc.train.training import train as _train
    from amc.zoo.data.sources import load_splits as load_splits
    from amc.zoo.data.splits import MemorySplit as MemorySplit
    from amc.zoo.data.splits import Split as Split
    from amc.zoo.data.splits import Splits as Splits
    from amc.zoo.networks.source import ModelSource as ModelSource
    from amc.zoo.networks.source import build_model as build_model

    load, save, examine, train_network = load_network, save_network, examine_network, _train

# Where each public name lives; it is imported when it is first asked for, so that `amc --help` stays fast.
_HOMES = {
    "amc.cascade": ("load_cascade",),
    "amc.cost.budget": ("Budget", "format_cost", "parse_budgets"),
    "amc.cost.trace": ("Trace", "trace"),
    "amc.job.api": ("compress", "open_run"),
    "amc.job.doctor.examination": ("examine",),
    "amc.job.run_folder": ("read_json",),
    "amc.job.job": ("Job", "open_job"),
    "amc.job.recipe": ("Recipe", "load_recipe", "recipes_folder"),
    "amc.job.rounding": ("recipe_rounding",),
    "amc.job.run": ("Run", "claimed"),
    "amc.release.archive": ("load", "save"),
    "amc.study.heartbeat": ("measured_by",),
    "amc.study.measure": ("Measure", "MeasureSettings"),
    "amc.study.objective": ("smoothed_objective",),
    "amc.study.optimize": ("fit_predictor", "optimize"),
    "amc.study.policy": ("Policy", "cut"),
    "amc.study.search": ("search",),
    "amc.study.sensitivity": ("sensitivity_curves", "sensitivity_price"),
    "amc.study.settings": ("SearchSettings",),
    "amc.study.trial": ("Protocol", "Trial"),
    "amc.study.trials": ("Study",),
    "amc.surgery.flop_counter": ("count_cut_macs",),
    "amc.system.device": ("Compute",),
    "amc.system.errors": (
        "AmcError",
        "BudgetUnreachable",
        "DataError",
        "GateFailed",
        "ModelError",
        "RunError",
        "StorageError",
        "UsageError",
    ),
    "amc.system.files": ("write_json", "write_text"),
    "amc.system.isolation": ("LimitExceeded", "Limits", "is_out_of_memory", "isolated_each"),
    "amc.system.progress": ("Progress", "Silent", "Stage", "shown"),
    "amc.system.settings": ("Settings",),
    "amc.train.evaluation": ("Evaluation", "evaluate", "paired_difference"),
    "amc.train.settings": ("FinetuneSchedule", "RecoverySettings", "Schedule"),
    "amc.train.training": ("optimizer_of", "set_learning_rate", "train_network"),
    "amc.zoo.data.sources": ("load_splits",),
    "amc.zoo.data.splits": ("MemorySplit", "Split", "Splits"),
    "amc.zoo.networks.source": ("ModelSource", "build_model"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}
# The face's name -> its home's; `amc.train` is the room.
_RENAMED = {"load": "load_network", "save": "save_network", "examine": "examine_network", "train_network": "train"}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'amc' has no attribute {name!r}")
    found = getattr(import_module(_PUBLIC[name]), _RENAMED.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
