"""How well accuracy is learned from few measured policies: our predictor beside usual regressions, on new policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amc import DataError, Progress, UsageError
from amc.bench.regressions import Array, predicted, regressions
from amc.bench.table import MISSING, Table
from amc_predictor import EnsemblePredictor
from amc_predictor.examples import MOST_BITS
from amc_predictor.ranks import kendall, spearman

OURS = "amc"
PLACED = "amc, with place"  # each policy's place in the file besides: better than ours only where the accuracies drift
FEWEST = 10  # policies in a file: 8 to learn from, 2 to be judged on
HELD = 0.2  # of the policies
COVERAGE = 0.9
CONSTANT = 1e-3  # of the accuracies' spread: predictions that differ by less are one, and their order is rounding
FIGURES = ("rmse", "spearman", "kendall", "coverage_90")

Figures = dict[str, float | None]  # of one fit on one split


@dataclass(frozen=True)
class MeasuredPolicies:
    """Policies with the accuracies measured of them.

    Attributes:
        rows: (n, d) pruned fractions and bits.
        accuracy: (n,) in [0, 1].
        bits: (d,) which columns are bits.
    """

    rows: Array
    accuracy: Array
    bits: NDArray[np.bool_]


def load_measured(policies: Path, accuracy: Path) -> MeasuredPolicies:
    """Read policies (n, d) and accuracies (n,), in percent where one is above 1, from two .npy files.

    A column whose values are all at most 1 holds pruned fractions, any other one bits.

    Raises:
        DataError: a file is missing, no array of numbers, of another shape, empty, or holds what is out of range; or
            all accuracies are equal.
    """
    rows, known = _array(policies), _array(accuracy)
    if rows.ndim != 2 or rows.size == 0:
        raise DataError(f"policies must have the shape (policies, columns), not empty, but {policies} has {rows.shape}")
    if known.shape not in ((len(rows),), (len(rows), 1)):
        raise DataError(
            f"accuracies must be one a policy, ({len(rows)},) for {policies}, but {accuracy} has {known.shape}"
        )
    if len(rows) < FEWEST:
        raise DataError(f"a comparison needs at least {FEWEST} policies, but {policies} has {len(rows)}; measure more")
    known = known.reshape(-1)
    if known.min() < 0 or known.max() > 100:
        raise DataError(
            f"accuracies must lie in [0, 1], or in [0, 100] as percentages, but {accuracy} has values from "
            f"{known.min():g} to {known.max():g}"
        )
    bits = rows.max(axis=0) > 1
    for column in np.flatnonzero((rows.min(axis=0) < bits) | (rows.max(axis=0) > MOST_BITS)):
        rule = f"bits from 1 to {MOST_BITS}" if bits[column] else "pruned fractions from 0 to 1"
        raise DataError(
            f"column {column} of {policies} must hold {rule}, but has values from {rows[:, column].min():g} to "
            f"{rows[:, column].max():g}"
        )
    if known.min() == known.max():
        raise DataError(f"accuracies must differ to be learned, but {accuracy} has {known[0]:g} for every policy")
    return MeasuredPolicies(rows, known / 100 if known.max() > 1 else known, bits)


def _array(path: Path) -> Array:
    """A .npy file's finite numbers, as float64; objects are never unpickled."""
    try:
        with path.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} must be a readable .npy file, but: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} must be a .npy file of numbers, but: {reason}; write it with numpy.save") from None
    if found.dtype.kind not in "fiub":
        raise DataError(f"{path} must hold numbers, but holds {found.dtype}; write it with numpy.save")
    if broken := int((~np.isfinite(found)).sum()):
        raise DataError(
            f"{path} must hold finite numbers, but {broken} {'is' if broken == 1 else 'are'} NaN or infinite"
        )
    return found.astype(np.float64)


def counts_of(text: str) -> tuple[int, ...]:
    """Counts separated by commas -> the same, rising, without repeats; an empty text gives none.

    Raises:
        UsageError: not whole numbers from 4, separated by commas.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if any(not part.isdecimal() or int(part) < 4 for part in parts):
        raise UsageError(f"--trials must be whole numbers from 4, separated by commas, got {text!r}; try 20,40,80,160")
    return tuple(sorted({int(part) for part in parts}))


def bench_predictor(
    measured: MeasuredPolicies, counts: Sequence[int], splits: int, progress: Progress
) -> dict[str, Any]:
    """Fit every predictor on parts of random 80/20 splits and judge it on the held-out fifth.

    A split's smaller parts are the beginnings of its larger ones, and all predictors see the same policies. Counts
    that a split does not have are left out, and named in `left_out`. Rank correlations of predictions that are
    constant are None, and a mean is over the splits that have one.

    Args:
        measured: the policies.
        counts: how many policies to learn from; all of a split's are learned from besides.
        splits: how many, numbered from 0; the number seeds the split and the predictors.
        progress: shows every split.
    """
    count = len(measured.accuracy)
    held = max(2, round(HELD * count))
    sizes = [*(size for size in counts if size < count - held), count - held]
    figures: dict[int, dict[str, list[Figures]]] = {size: {} for size in sizes}
    stage = progress.stage("Predictors", splits * len(sizes))
    for split in range(splits):
        order = np.random.default_rng(split).permutation(count)
        asked, known = order[:held], order[held:]
        for size in sizes:
            for name, row in _judged(measured, known[:size], asked, split).items():
                figures[size].setdefault(name, []).append(row)
            stage.advance(1, f"{size} policies")
    return {
        "policies": count,
        "columns": {"pruned": int((~measured.bits).sum()), "bits": int(measured.bits.sum())},
        "held_out": held,
        "splits": splits,
        "left_out": [size for size in counts if size > count - held],
        "spread_of_accuracies": float(measured.accuracy.std()),
        "rows": [
            {"learned": size, "predictor": name, **_summary(rows)}
            for size, named in figures.items()
            for name, rows in named.items()
        ],
    }


def _judged(
    measured: MeasuredPolicies, known: NDArray[np.int64], asked: NDArray[np.int64], seed: int
) -> dict[str, Figures]:
    """Every predictor's figures on the policies asked, learned from those known."""
    rows, accuracy, bits = measured.rows, measured.accuracy, measured.bits
    truth = torch.from_numpy(accuracy[asked])
    judge = partial(_figures, truth=truth, least=CONSTANT * float(accuracy.std()))
    policies = torch.from_numpy(np.where(bits, rows, 1 - rows))
    place = torch.linspace(0, 1, len(accuracy), dtype=torch.float64)[:, None]
    judged: dict[str, Figures] = {}
    for name, inputs in {OURS: policies, PLACED: torch.cat([policies, place], dim=1)}.items():
        ours = EnsemblePredictor(seed=seed, bits=np.flatnonzero(bits).tolist())
        ours.fit(inputs[known], torch.from_numpy(accuracy[known]))
        low, high = ours.interval(inputs[asked], COVERAGE)
        covered = float(((low <= truth) & (truth <= high)).double().mean())
        judged[name] = {**judge(ours.predict(inputs[asked])[0]), "coverage_90": covered}
    for name, make in regressions(bits, float(rows.max()), seed).items():
        judged[name] = judge(torch.from_numpy(predicted(make(), rows[known], accuracy[known], rows[asked])))
    return judged


def _figures(guess: torch.Tensor, truth: torch.Tensor, least: float) -> Figures:
    constant = float(guess.max() - guess.min()) < least
    ranked = not constant and bool(truth.min() < truth.max())
    return {
        "rmse": float((guess - truth).square().mean().sqrt()),
        "spearman": spearman(guess, truth) if ranked else None,
        "kendall": kendall(guess, truth) if ranked else None,
        "constant": float(constant),
    }


def _summary(rows: list[Figures]) -> dict[str, Any]:
    """Of each figure the mean and standard deviation over the splits that have it, and the values; `constant`: fits."""
    summary: dict[str, Any] = {"constant": sum(row["constant"] == 1 for row in rows)}
    for figure in (name for name in rows[0] if name != "constant"):
        values = [row[figure] for row in rows]
        known = [value for value in values if value is not None]
        summary[figure] = {
            "mean": mean(known) if known else None,
            "spread": stdev(known) if len(known) > 1 else None,
            "values": values,
        }
    return summary


def predictor_text(found: dict[str, Any]) -> str:
    """A line a predictor and count of policies: mean over the splits, and their standard deviation behind the sign."""
    columns, rows = found["columns"], []
    for row in found["rows"]:
        constant = f"constant on {row['constant']} of {found['splits']}" if row["constant"] else ""
        cells = (_with_spread(row.get(figure), 100 if figure == "rmse" else 1) for figure in FIGURES)
        rows.append([row["predictor"], str(row["learned"]), *cells, constant])
    title = (
        f"{found['policies']} policies of {columns['pruned']} pruned fractions and {columns['bits']} bits, "
        f"{found['held_out']} held out, {found['splits']} splits; RMSE in points; the accuracies' own spread is "
        f"{found['spread_of_accuracies'] * 100:.2f}"
    )
    heads = ["predictor", "learned from", "RMSE", "Spearman", "Kendall", "in 90% interval", ""]
    lines = [Table(heads, rows, title).text]
    if any(row["constant"] for row in found["rows"]):
        lines.append(
            "Constant: fits that predict one accuracy for all; they order nothing, and RMSE alone counts them."
        )
    lines += _drift(found["rows"])
    if found["left_out"]:
        missing = " and ".join(map(str, found["left_out"]))
        lines.append(f"--trials {missing} left out: a split has {found['policies'] - found['held_out']} to learn from.")
    return "\n".join(lines)


def _drift(rows: list[dict[str, Any]]) -> list[str]:
    """What the place in the file adds to the policy, where the most is learned from; or nothing.

    Said only where it is more than three standard errors of the paired differences of Kendall over the splits.
    """
    most = max(row["learned"] for row in rows)
    ours, placed = (
        next(row["kendall"]["values"] for row in rows if (row["learned"], row["predictor"]) == (most, name))
        for name in (OURS, PLACED)
    )
    gains = [with_it - without for without, with_it in zip(ours, placed, strict=True) if None not in (without, with_it)]
    if len(gains) < 2 or mean(gains) <= 3 * stdev(gains) / len(gains) ** 0.5:
        return []
    return [
        f"The accuracies drift along the file: with a policy's place in it, ours gains {mean(gains):.3f} of Kendall. "
        "No predictor of policies can learn that; measure a few policies again, early and late."
    ]


def _with_spread(figure: dict[str, Any] | None, unit: float) -> str:
    if figure is None:
        return ""
    if figure["mean"] is None:
        return MISSING
    spread = MISSING if figure["spread"] is None else f"{figure['spread'] * unit:.3f}"
    return f"{figure['mean'] * unit:.3f} +-{spread:>5}"
