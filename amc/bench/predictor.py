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

from amc.bench.regressions import Array, baselines, predicted
from amc.system.errors import DataError, UsageError
from amc.system.progress import Progress
from amc_predictor import EnsemblePredictor
from amc_predictor.examples import MOST_BITS
from amc_predictor.ranks import kendall, spearman

OURS = "amc"
PLACED = "amc, place told"  # each policy's place in the file besides: better than ours only where the labels drift
FEWEST = 10  # policies in a file: 8 to learn from, 2 to be judged on
HELD = 0.2  # of the policies
COVERAGE = 0.9
CONSTANT = 1e-3  # of the labels' spread: predictions that differ by less are one, and their order is rounding
FIGURES = ("rmse", "spearman", "kendall", "coverage_90")

Figures = dict[str, float | None]  # of one fit on one split


@dataclass(frozen=True)
class Measured:
    """Measured policies.

    Attributes:
        rows: (n, d) pruned fractions and bits.
        labels: (n,) accuracy in [0, 1].
        bits: (d,) which columns are bits.
    """

    rows: Array
    labels: Array
    bits: NDArray[np.bool_]


def load_measured(policies: Path, accuracy: Path) -> Measured:
    """Read policies (n, d) and accuracies (n,), in percent where one is above 1, from two .npy files.

    A column whose values are all at most 1 holds pruned fractions, any other one bits.

    Raises:
        DataError: a file is missing, no array of numbers, of another shape, empty, or holds what is out of range; or
            all accuracies are equal.
    """
    rows, labels = _array(policies), _array(accuracy)
    if rows.ndim != 2 or rows.size == 0:
        raise DataError(f"policies must have the shape (policies, columns), not empty, but {policies} has {rows.shape}")
    if labels.shape not in ((len(rows),), (len(rows), 1)):
        raise DataError(
            f"accuracies must be one a policy, ({len(rows)},) for {policies}, but {accuracy} has {labels.shape}"
        )
    if len(rows) < FEWEST:
        raise DataError(f"a comparison needs at least {FEWEST} policies, but {policies} has {len(rows)}; measure more")
    labels = labels.reshape(-1)
    if labels.min() < 0 or labels.max() > 100:
        raise DataError(
            f"accuracies must lie in [0, 1], or in [0, 100] as percentages, but {accuracy} has values from "
            f"{labels.min():g} to {labels.max():g}"
        )
    bits = rows.max(axis=0) > 1
    for column in np.flatnonzero((rows.min(axis=0) < bits) | (rows.max(axis=0) > MOST_BITS)):
        rule = f"bits from 1 to {MOST_BITS}" if bits[column] else "pruned fractions from 0 to 1"
        raise DataError(
            f"column {column} of {policies} must hold {rule}, but has values from {rows[:, column].min():g} to "
            f"{rows[:, column].max():g}"
        )
    if labels.min() == labels.max():
        raise DataError(f"accuracies must differ to be learned, but {accuracy} has {labels[0]:g} for every policy")
    return Measured(rows, labels / 100 if labels.max() > 1 else labels, bits)


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


def asked_labels(text: str) -> tuple[int, ...]:
    """Counts separated by commas -> the same, rising, without repeats; an empty text gives none.

    Raises:
        UsageError: not whole numbers from 4, separated by commas.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if any(not part.isdecimal() or int(part) < 4 for part in parts):
        raise UsageError(f"--labels must be whole numbers from 4, separated by commas, got {text!r}; try 20,40,80,160")
    return tuple(sorted({int(part) for part in parts}))


def bench_predictor(measured: Measured, labels: Sequence[int], splits: int, progress: Progress) -> dict[str, Any]:
    """Fit every predictor on parts of random 80/20 splits and judge it on the held-out fifth.

    A split's smaller parts are the beginnings of its larger ones, and all predictors see the same policies. Counts of
    labels that a split does not have are left out, and told in `left_out`. Rank correlations of predictions that are
    constant are None, and a mean is over the splits that have one.

    Args:
        measured: the policies.
        labels: how many to learn from; all of a split's are learned from besides.
        splits: how many, numbered from 0; the number seeds the split and the predictors.
        progress: told of every split.
    """
    count = len(measured.labels)
    held = max(2, round(HELD * count))
    sizes = [*(size for size in labels if size < count - held), count - held]
    figures: dict[int, dict[str, list[Figures]]] = {size: {} for size in sizes}
    stage = progress.stage("Predictors", splits * len(sizes))
    for split in range(splits):
        order = np.random.default_rng(split).permutation(count)
        asked, known = order[:held], order[held:]
        for size in sizes:
            for name, row in _judged(measured, known[:size], asked, split).items():
                figures[size].setdefault(name, []).append(row)
            stage.advance(1, f"{size} labels")
    return {
        "policies": count,
        "columns": {"pruned": int((~measured.bits).sum()), "bits": int(measured.bits.sum())},
        "held_out": held,
        "splits": splits,
        "left_out": [size for size in labels if size > count - held],
        "spread_of_labels": float(measured.labels.std()),
        "rows": [
            {"labels": size, "predictor": name, **_summary(rows)}
            for size, named in figures.items()
            for name, rows in named.items()
        ],
    }


def _judged(measured: Measured, known: NDArray[np.int64], asked: NDArray[np.int64], seed: int) -> dict[str, Figures]:
    """Every predictor's figures on the policies asked, learned from those known."""
    rows, labels, bits = measured.rows, measured.labels, measured.bits
    truth = torch.from_numpy(labels[asked])
    judge = partial(_figures, truth=truth, least=CONSTANT * float(labels.std()))
    policies = torch.from_numpy(np.where(bits, rows, 1 - rows))
    place = torch.linspace(0, 1, len(labels), dtype=torch.float64)[:, None]
    judged: dict[str, Figures] = {}
    for name, inputs in {OURS: policies, PLACED: torch.cat([policies, place], dim=1)}.items():
        ours = EnsemblePredictor(seed=seed, bits=np.flatnonzero(bits).tolist())
        ours.fit(inputs[known], torch.from_numpy(labels[known]))
        low, high = ours.interval(inputs[asked], COVERAGE)
        covered = float(((low <= truth) & (truth <= high)).double().mean())
        judged[name] = {**judge(ours.predict(inputs[asked])[0]), "coverage_90": covered}
    for name, make in baselines(bits, float(rows.max()), seed).items():
        judged[name] = judge(torch.from_numpy(predicted(make(), rows[known], labels[known], rows[asked])))
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
    told: dict[str, Any] = {"constant": sum(row["constant"] == 1 for row in rows)}
    for figure in (name for name in rows[0] if name != "constant"):
        values = [row[figure] for row in rows]
        known = [value for value in values if value is not None]
        told[figure] = {
            "mean": mean(known) if known else None,
            "spread": stdev(known) if len(known) > 1 else None,
            "values": values,
        }
    return told


def predictor_text(found: dict[str, Any]) -> str:
    """A line a predictor and count of labels: mean over the splits, and their standard deviation behind the sign."""
    columns = found["columns"]
    lines = [
        f"{found['policies']} policies of {columns['pruned']} pruned fractions and {columns['bits']} bits, "
        f"{found['held_out']} held out, {found['splits']} splits; RMSE in points; the labels' own spread is "
        f"{found['spread_of_labels'] * 100:.2f}",
        f"{'labels':>6}  {'predictor':<17}{'RMSE':>15}{'Spearman':>15}{'Kendall':>15}{'in 90% interval':>18}",
    ]
    for row in found["rows"]:
        told = [_told(row.get(figure), 100 if figure == "rmse" else 1) for figure in FIGURES]
        collapsed = f"  constant on {row['constant']} of {found['splits']}" if row["constant"] else ""
        line = f"{row['labels']:>6}  {row['predictor']:<17}{told[0]:>15}{told[1]:>15}{told[2]:>15}{told[3]:>18}"
        lines.append((line + collapsed).rstrip())
    if any(row["constant"] for row in found["rows"]):
        lines.append(
            "Constant: fits that predict one accuracy for all; they order nothing, and RMSE alone counts them."
        )
    lines += _drift(found["rows"])
    if found["left_out"]:
        missing = " and ".join(map(str, found["left_out"]))
        lines.append(f"--labels {missing} left out: a split has {found['policies'] - found['held_out']} to learn from.")
    return "\n".join(lines)


def _drift(rows: list[dict[str, Any]]) -> list[str]:
    """What the place in the file tells of the labels beside the policy, where learned from the most labels; or nothing.

    Told only where it is more than three standard errors of the paired differences of Kendall over the splits.
    """
    most = max(row["labels"] for row in rows)
    ours, placed = (
        next(row["kendall"]["values"] for row in rows if (row["labels"], row["predictor"]) == (most, name))
        for name in (OURS, PLACED)
    )
    gains = [with_it - without for without, with_it in zip(ours, placed, strict=True) if None not in (without, with_it)]
    if len(gains) < 2 or mean(gains) <= 3 * stdev(gains) / len(gains) ** 0.5:
        return []
    return [
        f"The labels drift along the file: told a policy's place in it, ours gains {mean(gains):.3f} of Kendall. No "
        "predictor of policies can learn that; measure a few policies again, early and late."
    ]


def _told(figure: dict[str, Any] | None, unit: float) -> str:
    if figure is None:
        return ""
    if figure["mean"] is None:
        return "-"
    spread = "-" if figure["spread"] is None else f"{figure['spread'] * unit:.3f}"
    return f"{figure['mean'] * unit:.3f} +-{spread:>5}"
