from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from amc.bench.caps import recipe_and_caps
from amc.bench.deadline import Deadline, Paused, Unfinished
from amc.bench.objectives import measurement as bench_module
from amc.bench.objectives.fidelity import drawn, drawn_kendall, kendall, regret, spread_of
from amc.bench.objectives.measurement import ComparisonDesign, bench_objectives
from amc.bench.objectives.policies import chosen_policies
from amc.bench.objectives.presentation import objectives_text, write_report
from amc.bench.objectives.trial_kinds import parse_kinds
from amc.bench.objectives.verdict import found_for_cap, long_values, trial_values, verdict
from amc.bench.store import Store
from amc.cli import app
from amc.cost.budget import parse_budgets
from amc.job.job import Job, open_job
from amc.job.recipe import Recipe, load_recipe
from amc.system.errors import BudgetUnreachable, RunError, UsageError
from amc.system.progress import Silent
from amc_search import repair
from tests.tiny import trained_weights

KINDS = "none,batchnorm,fold,fold+2,fold+2x9@0.01"
CAP = {"40%": parse_budgets(["40%"])}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    weights = trained_weights(tmp_path_factory.mktemp("objectives") / "dense.safetensors")
    return load_recipe(
        None,
        {
            "model.name": "tests.tiny:network", "model.weights": str(weights), "data.name": "tests.tiny:pictures",
            "search.batch_size": 50, "recovery.moment_images": 100, "recovery.batchnorm_images": 60,
            "surgery.round_to": 1, "recovery.step_images": 20, "finetune.batch_size": 50,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tiny: Recipe) -> Job:
    return open_job(tiny)


def wanted(policies: int = 8, epochs: float = 0.5, repeats: int = 2, kinds: str = KINDS) -> ComparisonDesign:
    return ComparisonDesign.of(CAP, kinds, policies, epochs, repeats)


def test_kinds_are_read_and_change_the_recovery(tiny: Recipe) -> None:
    """What stands before the plus says what is folded and re-estimated, what stands behind how it is trained."""
    none, batchnorm, fold, steps, slow = (kind.recovery(tiny.recovery) for kind in parse_kinds(KINDS))
    assert [none.batchnorm_images, batchnorm.batchnorm_images, fold.batchnorm_images] == [0, 60, 60]
    assert [none.fold, batchnorm.fold, fold.fold, steps.fold] == [False, False, True, True]
    assert (fold.steps, steps.steps, steps.lr, slow.lr) == (0, 2, tiny.recovery.lr, 0.01)
    assert (steps.step_images, slow.step_images) == (20, 9)


@pytest.mark.parametrize("text", ["fold+", "folding", "fold+0", "", "fold,fold", "fold+3@x", "fold+3x@1"])
def test_a_kind_that_is_none_is_told(text: str) -> None:
    """One line, with what was got."""
    with pytest.raises(UsageError, match="kind"):
        parse_kinds(text)


def test_a_kind_is_measured_as_a_trial_is(job: Job) -> None:
    """The kind of the recipe's own recovery gives accuracy and loss of `amc compress`."""
    policy = job.space.nearest(job.space.high / 2)
    (fold,) = parse_kinds("fold")
    same = job.measure.with_settings(recovery=fold.recovery(job.recipe.recovery))
    ours, theirs = same(policy), job.measure(policy)
    assert (ours.accuracy, ours.loss) == (theirs.accuracy, theirs.loss)


def test_half_of_the_policies_are_good_ones(job: Job) -> None:
    """All are distinct and under the cap, uniform ratios come first, the good ones are best by the judge."""
    caps = job.trace.caps(CAP["40%"])

    def judge(policies: NDArray[np.int64]) -> NDArray[np.float64]:
        return policies[:, 0].astype(np.float64)

    chosen = chosen_policies(job.space, caps, 12, 0, judge)
    policies, origins = np.stack([policy for policy, _ in chosen]), [origin for _, origin in chosen]
    assert origins == ["uniform"] + ["random"] * 5 + ["good"] * 6
    assert len(np.unique(policies, axis=0)) == 12 and (repair(policies, job.space, caps) == policies).all()
    assert judge(policies[6:]).min() >= np.median(judge(policies[1:6]))
    again = chosen_policies(job.space, caps, 12, 0, judge)
    assert all((ours == theirs).all() for (ours, _), (theirs, _) in zip(chosen, again, strict=True))


def test_order_is_judged_by_kendall_and_regret() -> None:
    """In the order of the long values Kendall is 1 and there is no regret; reversed, -1 and all that five can miss."""
    long = np.arange(10.0)
    assert kendall(long**3, long) == pytest.approx(1) and regret(long**3, long) == 0
    assert kendall(-long, long) == pytest.approx(-1) and regret(-long, long) == 5
    draws, noisy = drawn(10), long + np.random.default_rng(0).normal(0, 3, 10)
    assert drawn_kendall(noisy, long, draws)[:20] == pytest.approx([kendall(noisy[d], long[d]) for d in draws[:20]])


def test_spread_is_held_against_seed_noise() -> None:
    """Noise is the deviation between seeds of one policy, whatever the policies differ by."""
    rng = np.random.default_rng(0)
    values = [[mean + noise for noise in rng.normal(0, 0.1, 2)] for mean in rng.normal(0, 1, 200)]
    found = spread_of(values)
    assert found.noise == pytest.approx(0.1, rel=0.15) and found.ratio is not None and found.kendall is not None
    assert found.ratio.low < 10 < found.ratio.high and found.word == "the policy matters" and found.kendall > 0.8
    assert spread_of([[value] for value in rng.normal(0, 1, 5)]).ratio is None
    assert spread_of(rng.normal(0, 1, (50, 2)).tolist()).word == "chance hides what the policy does"


def rows_of(truth: NDArray[np.float64], noise: dict[str, tuple[float, float]]) -> list[dict[str, object]]:
    """Policies whose trials are the truth and (noise, seconds) by kind."""
    rng = np.random.default_rng(1)

    def record(loss: float, seconds: float) -> dict[str, float]:
        return {"accuracy": float(np.exp(-loss)), "loss": float(loss), "seconds": seconds}

    return [
        {
            "origin": "good" if index % 2 else "random",
            "long": [record(value + rng.normal(0, 0.01), 60.0) for _ in range(2)],
            "trials": {kind: record(value + rng.normal(0, of), seconds) for kind, (of, seconds) in noise.items()},
        }
        for index, value in enumerate(truth)
    ]


def test_the_cheapest_trial_that_orders_well_enough_wins() -> None:
    """Of trials with Kendall 0.7 the one of the fewest seconds; if none has it, the cheapest of the near best."""
    truth = np.linspace(0.5, 1.5, 24)
    good = found_for_cap("a", rows_of(truth, {"bad": (1.0, 0.1), "fair": (0.1, 1.0), "fine": (0.01, 9.0)}))  # type: ignore[arg-type]
    won = verdict([good])
    assert (won["kind"], won["enough"], won["caps"], won["seconds"]) == ("fair", True, ["a"], 1.0)
    rows = rows_of(np.linspace(0.5, 1.5, 60), {"bad": (9.0, 0.1), "fair": (0.4, 1.0)})
    for row in rows:
        row["trials"]["fine"] = {**row["trials"]["fair"], "seconds": 9.0}  # type: ignore[index]
    won = verdict([found_for_cap("b", rows)])  # type: ignore[arg-type]
    assert won["kind"] == "fair" and won["enough"] is False and won["reason"] is None


def test_no_winner_is_named_where_none_can_be_told() -> None:
    """Few policies, a spread that chance explains, wide intervals and equal objectives: the reason, and no winner."""
    one_seed = rows_of(np.linspace(0.5, 1.5, 24), {"fold": (0.1, 1.0)})
    for row in one_seed:
        row["long"] = row["long"][:1]  # type: ignore[index]
    equal = rows_of(np.linspace(0.5, 1.5, 24), {"fold": (0.5, 1.0), "none": (0.5, 1.0)})
    for row in equal:
        row["trials"]["none"] = row["trials"]["fold"]  # type: ignore[index]
    cases = {
        "8 policies a cap are too few": rows_of(np.linspace(0.5, 1.5, 8), {"fold": (0.01, 1.0)}),
        "times their seed noise at most": rows_of(np.full(24, 1.0), {"fold": (0.01, 1.0)}),
        "give --repeats 2": one_seed,
        "is wide, ": rows_of(np.linspace(0.5, 1.5, 12), {"fold": (0.3, 1.0), "none": (9.0, 1.0)}),
        "no more than a standard error": equal,
    }
    for reason, rows in cases.items():
        won = verdict([found_for_cap("a", rows)])  # type: ignore[arg-type]
        assert reason in (won["reason"] or "") and won["kind"] is None, (reason, won)


def test_a_top_of_most_policies_has_no_regret() -> None:
    """Regret of the five best is told from ten policies on."""
    few, enough = (found_for_cap("a", rows_of(np.linspace(0, 1, n), {"fold": (0.1, 1.0)})) for n in (9, 10))  # type: ignore[arg-type]
    assert all(one["regret"] is None and one["regret_accuracy"] is None for one in few["objectives"])
    assert all(one["regret"]["value"] >= 0 for one in enough["objectives"])


def test_a_task_without_losses_is_judged_by_accuracy() -> None:
    """Metrics that are not given do not appear."""
    rows = rows_of(np.linspace(0.5, 1.5, 8), {"fold": (0.1, 1.0)})
    for row in rows:
        for record in [*row["long"], *row["trials"].values()]:  # type: ignore[misc, attr-defined]
            record.update(loss=0.0)
    found = found_for_cap("a", rows)  # type: ignore[arg-type]
    assert found["truth"] == "accuracy" and [one["metric"] for one in found["objectives"]] == ["accuracy"]


def test_a_comparison_stops_at_its_deadline_and_goes_on(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken is never taken again, and the result is that of a comparison that was not stopped."""
    few = wanted(policies=6, kinds="none,fold+2")
    whole = bench_objectives(tiny, few, tmp_path / "whole", 60, Silent())
    taken, fuse = [], [25]
    put = Store.put

    def counted(self: Store, kind: str, *key: object, value: object) -> None:
        taken.append((kind, str(key)))
        put(self, kind, *key, value=value)

    def check(self: Deadline) -> None:
        fuse[0] -= 1
        if fuse[0] == 0:
            raise Paused

    monkeypatch.setattr(Store, "put", counted)
    monkeypatch.setattr(Deadline, "check", check)
    stops = before = 0
    while True:
        try:
            found = bench_objectives(tiny, few, tmp_path / "parts", 60, Silent())
            break
        except Unfinished as error:
            assert error.exit_code == 130 and "goes on" in str(error) and "\n" not in str(error)
            done, total = map(int, re.findall(r"(\d+) of (\d+) networks are measured", str(error))[0])
            assert before <= done < total == 6 * 2 + 6 * 2
            before = done
            stops, fuse[0] = stops + 1, 25
    assert stops > 1 and len(taken) == len(set(taken))
    mine, theirs = ([row["long"] for row in of["caps"]["40%"]["rows"]] for of in (found, whole))
    assert [[r["loss"] for r in row] for row in mine] == [[r["loss"] for r in row] for row in theirs]
    assert not list((tmp_path / "parts").glob("checkpoint-*"))


def test_a_comparison_is_told_in_full(tiny: Recipe, tmp_path: Path) -> None:
    """Every kind and metric has its line; JSON, Markdown and page stand in the folder."""
    found = bench_objectives(tiny, wanted(kinds="none,fold"), tmp_path, 60, Silent())
    write_report(found, tmp_path)
    cap = found["caps"]["40%"]
    assert len(cap["objectives"]) == 6 and {one["kind"] for one in cap["objectives"]} == {"none", "fold"}
    assert sum(len(row["long"]) > 1 for row in cap["rows"]) == 8 and cap["spread"]["loss"]["ratio"]["value"] > 0
    assert all(0 < row["shares"]["macs"] <= 0.4 for row in cap["rows"])
    text = objectives_text(found)
    assert "No winner: 8 policies" in text and "Of the good: " in text and "Smoothed: " in text
    mine = [line.split() for line in text.splitlines() if line.startswith("fold")]
    assert len(mine) == 3 and all(line[-5:-3] == ["-", "-"] for line in mine)  # regret of eight policies
    again = json.loads((tmp_path / "objectives.json").read_text())
    assert again["winner"] == found["winner"] and again["machine"]["cores"] >= 1
    assert "| fold | loss |" in (tmp_path / "objectives.md").read_text()
    page = (tmp_path / "objectives.html").read_text()
    assert page.count("Plotly.newPlot(") >= 1 and "chosen as good" in page
    values = trial_values(cap["rows"], "fold")["loss"], long_values(cap["rows"], "loss")
    assert kendall(*values) == next(
        of["kendall"]["value"] for of in cap["objectives"] if (of["kind"], of["metric"]) == ("fold", "loss")
    )


def test_networks_measured_otherwise_are_not_mixed(tiny: Recipe, job: Job, tmp_path: Path) -> None:
    """Another recovery or fine-tune needs another folder."""
    bench_objectives(tiny, wanted(kinds="none", repeats=1, epochs=0.1), tmp_path, 60, Silent())
    other = tiny.model_copy(update={"finetune": tiny.finetune.model_copy(update={"lr": 0.5})})
    with pytest.raises(RunError, match=r"finetune.*--out"):
        bench_objectives(other, wanted(kinds="none"), tmp_path, 60, Silent())


def test_recipes_of_both_sorts_are_understood(tmp_path: Path) -> None:
    """A bench recipe brings its caps and its changes; given caps come first."""
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "quickstart"\ncaps = ["25%", ["20%", "30%params"]]\n[set]\nsearch.batch_size = 99\n')
    recipe, caps = recipe_and_caps(str(path), None, {"seed": 3})
    assert (recipe.search.batch_size, recipe.seed, list(caps)) == (99, 3, ["25%", "20%+30%params"])
    recipe, caps = recipe_and_caps("quickstart", None, {})
    assert recipe.name == "quickstart" and list(caps) == ["15%", "40%"]
    assert list(recipe_and_caps(str(path), "10%+30%params,50%", {})[1]) == ["10%+30%params", "50%"]


def test_too_few_policies_are_refused() -> None:
    """Before anything is prepared."""
    with pytest.raises(UsageError, match="6 policies"):
        wanted(policies=bench_module.FEWEST - 1)
    for epochs in (0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="epochs"):
            wanted(epochs=epochs)


@pytest.mark.parametrize(("flag", "value"), [("--epochs", "nan"), ("--epochs", "inf"), ("--minutes", "inf")])
def test_numbers_that_are_none_are_refused_at_the_door(flag: str, value: str) -> None:
    """One line with the flag and the value."""
    done = CliRunner().invoke(app, ["bench", "objectives", "quickstart", flag, value])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == f"{flag} must be a finite number, but is {value}"


def test_minutes_that_are_no_number_are_refused() -> None:
    """NaN is in no range: exit code 2."""
    assert CliRunner().invoke(app, ["bench", "objectives", "quickstart", "--minutes", "nan"]).exit_code == 2


def test_a_cap_below_all_policies_is_told_in_the_units_of_costs(tiny: Recipe, tmp_path: Path) -> None:
    """What the cap asks for and the smallest policy, as people read costs."""
    low = ComparisonDesign.of({"1MACs": parse_budgets(["1MACs"])}, "none", 6, 0.1, 1)
    with pytest.raises(BudgetUnreachable, match=r"1 MACs is below the smallest policy's [\d.]+ k?M?MACs"):
        bench_objectives(tiny, low, tmp_path, 60, Silent())


def test_a_degenerate_network_stands_behind_all_others(tiny: Recipe, tmp_path: Path) -> None:
    """A kind that cannot be measured is told as such, and the comparison goes on."""
    kinds = "fold,fold+40x10@100"
    found = bench_objectives(tiny, wanted(policies=6, kinds=kinds, repeats=1, epochs=0.1), tmp_path, 60, Silent())
    taken = [row["trials"]["fold+40x10@100"] for row in found["caps"]["40%"]["rows"]]
    failed = [record for record in taken if "failure" in record]
    assert failed and all("finite" in record["failure"] and record["accuracy"] == 0 for record in failed)
    assert found["winner"]["reason"]
