"""The main flow of `amc bench RECIPE`: searches, then the order of fresh policies, then fine-tunes; resumed at will.

In the folder: results.json, table.md and plots.html; under the protocol's hash measured.db, and under the objective
searches/, orders/ and the checkpoint of a fine-tune at work. To search again with a method that has changed, delete its
folder in searches/: what it measured stays.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amc import Job, ModelError, Progress, RunError, Silent, UsageError, claimed, open_job, write_json, write_text
from amc.bench.deadline import Deadline, Paused, Unfinished
from amc.bench.search_methods import finals
from amc.bench.search_methods.bench_recipe import BenchRecipe
from amc.bench.search_methods.context import Context
from amc.bench.search_methods.findings import Findings, LeftOut
from amc.bench.search_methods.orders import Order, is_ordered, order, read_order
from amc.bench.search_methods.plots_page import plots_page
from amc.bench.search_methods.results import results
from amc.bench.search_methods.searches import FRONT, Search, Spec, front_caps, read_search, search, specs_of
from amc.bench.search_methods.shared_study import front_method
from amc.bench.search_methods.tables import table_markdown
from amc.bench.store import FILE, Store
from amc_search.baselines.extra import MissingExtra
from amc_search.baselines.problem import Method

RESULTS, TABLE, PLOTS, LEFT_OUT = "results.json", "table.md", "plots.html", "left-out.json"


@dataclass(frozen=True)
class Scope:
    """How much of a comparison a command shall do.

    Attributes:
        minutes: after which it stops between two trials.
        only: methods to run; empty: all.
        report_only: measure nothing, and report what is there.
    """

    minutes: float = 45.0
    only: tuple[str, ...] = ()
    report_only: bool = False


def bench_methods(
    recipe: BenchRecipe,
    out: Path,
    wanted: Scope | None = None,
    progress: Progress | None = None,
    *,
    methods: Callable[[Job], Mapping[str, Method]] | None = None,
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Run a comparison of search methods, or go on with it; returns what `results.json` in `out` holds.

    Args:
        recipe: what is compared.
        out: the folder; one process at a time.
        wanted: how much of it now.
        progress: where it is shown.
        methods: what gives the methods by name for a network; None: those of the product.
        deadline: when to stop; None: as `wanted` says, from now.

    Raises:
        Unfinished: the time is over; the results so far are written, and the same call goes on.
        AmcError: any of `amc.system.errors`; what was measured is kept.
    """
    wanted, progress = wanted or Scope(), progress or Silent()
    deadline = deadline or Deadline(wanted.minutes)
    _check(recipe, wanted)
    if wanted.report_only:
        _check_begun(out, "*", recipe)
    ordinary = recipe.compress_recipe()
    with claimed(out):
        job = open_job(ordinary, out, progress, store=not wanted.report_only)
        folder = out / job.measure.protocol().digest
        if wanted.report_only:
            _check_begun(out, folder.name, recipe)
        with Store(folder) as store:
            known = {} if wanted.report_only else (methods or product_methods)(job)
            context = Context(recipe, job, store, deadline)
            work = _Work(context, folder / recipe.objective, wanted, known, progress)
            try:
                work.run()
            except Paused:
                left = work.report(out)["progress"]
                raise Unfinished(_how_far(left, out, wanted)) from None
            return work.report(out)


def _check(recipe: BenchRecipe, wanted: Scope) -> None:
    if wanted.only and wanted.report_only:
        raise UsageError("--report shows every method that is there, so --only cannot go with it; leave one out")
    for name in wanted.only:
        if name not in recipe.named_methods:
            near = difflib.get_close_matches(name, recipe.named_methods, 1)
            raise UsageError(
                f"--only must name a method of {recipe.origin}, but {name!r} is none of "
                f"{', '.join(recipe.named_methods)}" + (f"; did you mean {near[0]}?" if near else "")
            )


def _check_begun(out: Path, protocol: str, recipe: BenchRecipe) -> None:
    if not any(out.glob(f"{protocol}/{FILE}")):
        raise RunError(
            f"--report needs a folder in which {recipe.origin} was begun, but {out} holds nothing of it; "
            "give its --out, or leave --report out"
        )


def product_methods(job: Job) -> Mapping[str, Method]:
    """All methods by name."""
    from amc.bench.search_methods.methods import all_methods

    return all_methods(job)


class _Work:
    """One command's part of a comparison."""

    def __init__(
        self, context: Context, folder: Path, wanted: Scope, methods: Mapping[str, Method], progress: Progress
    ) -> None:
        self.context, self.recipe, self.folder, self.progress = context, context.recipe, folder, progress
        self.wanted, self.methods = wanted, methods
        self.specs = specs_of(self.recipe, list(wanted.only))
        self.left_out: LeftOut = json.loads((folder / LEFT_OUT).read_text()) if (folder / LEFT_OUT).is_file() else {}
        if not wanted.report_only:
            self._check_methods()

    def run(self) -> None:
        """Everything that is not done yet. Raises `Paused`."""
        if self.wanted.report_only:
            return
        found = self._search()
        for one in found:
            if self.recipe.rank and is_ordered(one.spec) and self._order(one) is None:
                self.progress.say(f"measure fresh policies: {one.spec.cap}, seed {one.spec.seed}")
                order(one, self.context, self.folder)
        if self.recipe.winners_of:
            self._finetune(found)

    def report(self, out: Path) -> dict[str, Any]:
        """Compute all figures from what is there and write them."""
        found = self._findings()
        record = results(found, self.context)
        write_json(out / RESULTS, record)
        write_text(out / TABLE, table_markdown(record))
        write_text(out / PLOTS, plots_page(found, record))
        return record

    def _check_methods(self) -> None:
        for name in self.recipe.named_methods:
            if name not in self.methods:
                near = difflib.get_close_matches(name, self.methods, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.methods)}"
                raise UsageError(f"{self.recipe.origin}: a method must be known, but {name!r} is not; {hint}")

    def _search(self) -> list[Search]:
        again = {spec.method for spec in self.specs}  # what did not run may run now
        self.left_out = {method: caps for method, caps in self.left_out.items() if method not in again}
        write_json(self.folder / LEFT_OUT, self.left_out)
        stage = self.progress.stage("trials asked for", sum(spec.trials for spec in self.specs))
        found = []
        for spec in self.specs:
            known = read_search(spec, self.folder)
            asked = _Asked(partial(stage.advance, 1, f"{spec.method} at {spec.cap}, seed {spec.seed}"))
            if known is None and spec.cap not in self.left_out.get(spec.method, {}):
                known = self._try(spec, asked)
            stage.advance(spec.trials - asked.count)
            if known is not None:
                found.append(known)
        return found

    def _try(self, spec: Spec, asked: _Asked) -> Search | None:
        """One search; None where the method cannot run on this network under this cap, which is written down."""
        try:
            found = search(spec, self._method(spec), self.context, self.folder, asked)
        except (ModelError, MissingExtra) as error:
            self.left_out.setdefault(spec.method, {})[spec.cap] = str(error)
            write_json(self.folder / LEFT_OUT, self.left_out)
            self.progress.say(f"{spec.method} is left out at {spec.cap}: {error}")
            return None
        self.context.has_advanced = True
        return found

    def _method(self, spec: Spec) -> Method:
        if spec.cap == FRONT:
            return front_method([self.context.caps[cap] for cap in front_caps(self.recipe)])
        return self.methods[spec.method]

    def _finetune(self, found: list[Search]) -> None:
        finals.evaluate_dense(self.context)
        policies = finals.field(self.context, found, self.wanted.only)
        for data_seed in range(self.recipe.finetune_seeds):
            for number, policy in enumerate(policies, start=1):
                if finals.known_final(self.context.store, policy, data_seed) is None:
                    self.progress.say(f"fine-tune {number} of {len(policies)}, order {data_seed} of the data")
                    finals.finetune(self.context, policy, data_seed, self.folder, self.progress)

    def _order(self, found: Search) -> Order | None:
        return read_order(found, self.folder, self.recipe.rank)

    def _findings(self) -> Findings:
        """What there is in the folder, of all methods of the recipe."""
        read = [read_search(spec, self.folder) for spec in specs_of(self.recipe)]
        searches = [one for one in read if one is not None]
        orders = [self._order(one) for one in searches if is_ordered(one.spec)]
        tuned, drawn = finals.read_finals(self.context, searches)
        return Findings(
            self.recipe, searches, [one for one in orders if one is not None], tuned, drawn,
            finals.known_final(self.context.store, self.context.job.space.high, finals.UNTRAINED), self.left_out,
            finals.missing(self.context, searches),
        )  # fmt: skip


class _Asked:
    """Counts what it passes on."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell, self.count = tell, 0

    def __call__(self) -> None:
        self.count += 1
        self._tell()


def _how_far(progress: dict[str, Any], out: Path, wanted: Scope) -> str:
    return (
        f"{wanted.minutes:g} minutes are over: {progress['searches']} of {progress['searches_wanted']} searches, "
        f"{progress['trials']:,} trials and {progress['finals']} fine-tunes are done and kept in {out}; "
        "the same command goes on"
    )
