"""A network's record in print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc.cost.budget import format_cost, format_flops_2x
from amc.job.doctor.checks import PARTS
from amc.job.doctor.second_opinion import opinion_lines

MEANINGS = {
    "shape": "outputs have the dense network's shape",
    "cost": "MACs (torch's counter), parameters and bytes are exactly those predicted",
    "equal": "outputs are those of the dense network with the removed channels zero",
    "saved": "saved and loaded again, outputs are the same bit for bit",
}


def record_text(record: Mapping[str, Any]) -> str:
    """A table of groups, then what is frozen and why, then the reachable costs, then the checks."""
    if record["checks"] is None:
        return f"{record['model']} cannot be cut"
    shape = "x".join(map(str, record["input_shape"]))
    lines = [
        f"{record['model']} on {shape}: {len(record['groups'])} groups, traced in {record['trace_seconds']:.1f} s",
        "",
        f"{'group':<40}{'channels':>9}{'smallest':>9}{'step':>6}{'MACs it holds':>15}  layers",
    ]
    for group in record["groups"]:
        others = [name for name in group["layers"] if name != group["name"]]
        more = f"{', '.join(others[:2])}{f' and {len(others) - 2} more' if len(others) > 2 else ''}"
        numbers = f"{group['channels']:>9}{group['smallest']:>9}{group['step']:>6}{group['macs_share']:>14.1%}"
        lines.append(f"{group['name']:<40}{numbers}  {more}")
    if removable := sum(group["smallest"] == 0 for group in record["groups"]):
        lines += [
            "",
            f"{removable} of {len(record['groups'])} groups may keep 0 channels: the branch they stand in is then gone",
        ]
    lines += ["", "not cut:"] + [
        f"  {frozen['name']} ({frozen['channels']} channels): {frozen['reason']}" for frozen in record["frozen"]
    ]
    dense, smallest = record["dense"], record["smallest"]
    lines += ["", f"{'':<12}{'dense':>34}{'smallest':>34}"]
    for unit in ("macs", "params", "bytes"):
        lines.append(f"{unit:<12}{format_cost(unit, dense[unit]):>34}{format_cost(unit, smallest[unit]):>34}")
    lines.append(f"{'2 per MAC':<12}{format_flops_2x(dense['macs']):>34}{format_flops_2x(smallest['macs']):>34}")
    opinion = ["", *opinion_lines(record)] if "second_opinion" in record else []
    return "\n".join([*lines, "", *_checks(record["checks"]), *opinion])


def _checks(checks: Mapping[str, Any]) -> list[str]:
    policies = checks["policies"]
    lines = [f"checked on {len(policies)} policies ({'; '.join(policy['policy'] for policy in policies)}):"]
    for part in PARTS:
        holding = sum(policy[part] for policy in policies)
        lines.append(f"  {'ok  ' if checks[part] else 'FAIL'} {holding} of {len(policies)}: {MEANINGS[part]}")
    if checks["largest_difference"] is not None:
        lines.append(
            f"  outputs differ by at most {checks['largest_difference']:.1e} of what tells two examples apart; "
            f"{checks['tolerance']:g} is allowed"
        )
    return lines + [f"  {policy['reason']}" for policy in policies if policy["reason"]]
