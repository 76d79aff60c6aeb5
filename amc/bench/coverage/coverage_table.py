"""The coverage table in print: one row a network, small enough to be committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc import format_cost

Record = dict[str, Any]
PARTS = ("shape", "cost", "equal", "saved")  # of the checks that `amc.examine` makes
COLUMNS = ("network", "pixels", "groups", "may go whole", "not cut", "MACs", "smallest", "can be cut", "trace", *PARTS,
           "largest difference", "torch-pruning at half")  # fmt: skip


def compact(record: Mapping[str, Any]) -> Record:
    """A record without its lists: how many groups, how many of them may be removed whole, how many layers stay."""
    row = {key: value for key, value in record.items() if key not in ("model", "input_shape", "options", "limit")}
    if row.get("checks") is not None:
        row["groups"] = len(record["groups"])
        row["removable"] = sum(group["smallest"] == 0 for group in record["groups"])
        row["frozen"] = len(record["frozen"])
        row["checks"] = {key: value for key, value in record["checks"].items() if key != "policies"}
        row["failed_policies"] = [policy for policy in record["checks"]["policies"] if not policy["ok"]]
    return row


def markdown(record: Mapping[str, Any]) -> str:
    """The whole table, with what its columns mean."""
    summary, zoo, limits = record["summary"], record["zoo"], record["limits"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines = [
        f"# Coverage of {zoo}",
        "",
        f"{summary['ok']} of {summary['total']} networks hold. torch-pruning's own pruner runs on "
        f"{summary['torch_pruning_ok']} of {summary['torch_pruning_total']}. Worse than torch-pruning: "
        f"{', '.join(f'`{name}`' for name in summary['worse']) or 'nowhere'}.",
        "",
        f"Made by `amc doctor --zoo {zoo}` with {versions}. Each network has random weights and a process of its own "
        f"that may take {limits['seconds']:g} s and {limits['gigabytes']:g} GB. Four policies are cut out of it: three "
        "random ones, the second with many widths at their ends, and the smallest.",
        "",
        "- groups: channels, heads or widths that are cut together; of these, how many may go whole; not cut: layers "
        "some of whose channels stay whatever the policy",
        "- smallest: MACs of the smallest policy; can be cut: the share of the dense network's that it saves",
        "- shape: the output's is the dense network's. cost: MACs by torch's own counter, parameters and bytes are "
        "exactly those predicted. equal: the output is that of the dense network with the removed channels zero. "
        "saved: written and read again, the output is the same bit for bit",
        *_difference_note(record),
        f"- torch-pruning: MACs that its pruner leaves at ratio {record['torch_pruning_ratio']:g}, within "
        f"{record['torch_pruning_limits']['seconds']:g} s and {record['torch_pruning_limits']['gigabytes']:g} GB, and "
        "whether the network then runs; whether what it computes is right is not looked at. Worse: its pruner runs "
        "where ours does not hold, or leaves fewer MACs than our smallest policy",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join(['---', *['---:'] * 8, *['---'] * 4, '---:', '---'])}|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in record["networks"]]
    failed = [f"- `{row['name']}`: {row['reason']}" for row in record["networks"] if not row["ok"]]
    if failed:
        lines += ["", "## What does not hold", "", *failed]
    return "\n".join(lines) + "\n"


def _difference_note(record: Mapping[str, Any]) -> list[str]:
    """What the column of differences means; nothing where no network was checked."""
    if record["faint"] is None:
        return []
    return [
        "- largest difference between those two outputs, as a share of the largest one between two images' outputs "
        f"(of {record['faint']:.0%} of the largest output, where that is more), in float32, or in float64 where "
        f"float32 rounds too much; up to {record['tolerance']:g} is equal"
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    peer = _peer_cell(row["torch_pruning"])
    name, size, checks = f"`{row['name'].rpartition(':')[2]}`", str(row["size"]), row.get("checks")
    if checks is None:
        return [name, size, *["-"] * 7, *["no"] * 4, "-", peer]
    difference = checks["largest_difference"]
    return [
        name,
        size,
        str(row["groups"]),
        str(row["removable"]),
        str(row["frozen"]),
        format_cost("macs", row["macs"]),
        format_cost("macs", row["min_macs"]),
        f"{row['cut_share']:.1%}",
        f"{row['trace_seconds']:.1f} s",
        *("yes" if checks[part] else "no" for part in PARTS),
        "-" if difference is None else f"{difference:.0e}",
        peer,
    ]


def _peer_cell(peer: Mapping[str, Any] | None) -> str:
    if peer is None:
        return "-"
    if peer["ok"]:
        return format_cost("macs", peer["pruned_macs"])
    reason = peer["reason"].replace("|", "\\|")
    return f"fails: {reason if len(reason) <= 80 else reason[:77] + '...'}"
