"""The result of `amc cascade` for people."""

from __future__ import annotations

from typing import Any

from amc.cost.budget import format_macs


def report_text(record: dict[str, Any]) -> str:
    """The plan, its exits, its costs, what is certified, and the best static network beside it."""
    plan, test, dense = record["plan"], record["test"]["plan"], record["dense"]["macs"]
    lines = [
        record["folder"],
        f"  asked      {record['terms']['asked']}",
        f"  plan       {plan['name']}",
    ]
    if record["fallback"] is not None:
        lines.append(f"             a static network, since {record['fallback']}")
    lines += _exits(plan, test)
    lines += [
        f"  cost       {_costs(test, dense)}",
        f"  time       {_seconds(test)}; of one input, and of a batch, here and now",
        f"  test       {_accuracy(test)} on {test['examples']:,} examples, looked at once",
        f"  certified  {_certified(plan['certified'], dense)}",
    ]
    return "\n".join(lines + _static(record, dense) + _rivals(record, dense))


def _exits(plan: dict[str, Any], test: dict[str, Any]) -> list[str]:
    if len(test["exits"]) == 1:
        return []
    width = max(len(each["stage"]) for each in test["exits"])
    confidence = f"{plan['certified']['confidence']:.0%}"
    lines = [
        f"             {'stage':<{width}}  {'adds':>12}  stop here  right of those   alone  below dense, of those "
        f"({confidence})"
    ]
    for each, added, held in zip(test["exits"], plan["added"], plan["exits"], strict=True):
        right = "-" if each["accuracy"] is None else f"{each['accuracy']:.2%}"
        lines.append(
            f"             {each['stage']:<{width}}  {format_macs(added):>12}  {each['share']:>9.1%}  {right:>14}  "
            f"{each['alone']:.2%}  {_gap(held)}"
        )
    return lines


def _gap(exit_: dict[str, Any]) -> str:
    """Of the holdout examples that stopped at an exit: how much less often right than the dense network."""
    if exit_["gap"] is None:
        return "-"
    low, high = exit_["gap_interval"]
    return f"{exit_['gap']:.2%} ({low:.1%} to {high:.1%})"


def _static(record: dict[str, Any], dense: float) -> list[str]:
    static, compared = record["static"], record["comparison"]
    if static is None:
        return ["  static     no single network keeps to these constraints"]
    test = record["test"]["static"]
    doubt = "" if static["passed"] else ", though it did not pass the test on the holdout examples"
    lines = [
        f"  static     the best single network under the same constraints{doubt}: {static['stages'][0]}, "
        f"{_cost(test['worst_cost'], dense)}, {_seconds(test)}, test {_accuracy(test)}"
    ]
    if record["fallback"] is None:
        lines.append(
            f"             the plan is {100 * compared['difference']:+.2f} points from it (95% interval "
            f"{100 * compared['low']:+.2f} to {100 * compared['high']:+.2f}), at "
            f"{record['test']['plan']['cost']['mean'] / test['worst_cost']:.0%} of its mean cost"
        )
    return lines


def _rivals(record: dict[str, Any], dense: float) -> list[str]:
    alternatives = [each for each in record["rivals"] if each["name"] != record["plan"]["name"]][:3]
    if not alternatives:
        return []
    lines = ["  next best  on the calibration examples, none of them tested:"]
    for each in alternatives:
        lines.append(f"             {each['name']}: {_cost(each['macs'], dense)}, {each['fit_accuracy']:.2%}")
    return lines


def _cost(macs: float, dense: float) -> str:
    return f"{format_macs(macs)} ({macs / dense:.1%})"


def _costs(test: dict[str, Any], dense: float) -> str:
    cost = test["cost"]
    if len(test["exits"]) == 1:
        return f"{_cost(cost['mean'], dense)} for every example"
    quantiles = ", ".join(f"{key} {_cost(cost[key], dense)}" for key in ("p50", "p95", "p99"))
    return f"{_cost(cost['mean'], dense)} on average; {quantiles}; never above {_cost(test['worst_cost'], dense)}"


def _seconds(test: dict[str, Any]) -> str:
    reported = (
        f"{1000 * spread['mean']:.2f} ms for {batch} (p95 {1000 * spread['p95']:.2f} ms, p99 "
        f"{1000 * spread['p99']:.2f} ms, max {1000 * spread['max']:.2f} ms)"
        for batch, spread in test["seconds"].items()
    )
    return ", ".join(reported)


def _accuracy(test: dict[str, Any]) -> str:
    low, high = test["interval_95"]
    return f"{test['accuracy']:.2%} ({low:.1%} to {high:.1%})"


def _certified(bounds: dict[str, Any], dense: float) -> str:
    drop = bounds["drop"]
    against = f"at most {drop:.2%} below" if drop >= 0 else f"at least {-drop:.2%} above"
    tested = f"{bounds['examples']:,} other examples"
    if bounds["groups"] is not None:
        tested += f" of {bounds['groups']} groups, taken for independent draws"
    return (
        f"with {bounds['confidence']:.0%} confidence each, on {tested}: accuracy at least {bounds['accuracy']:.2%}, "
        f"{against} the dense network, mean cost at most {_cost(bounds['mean_cost'], dense)}"
    )
