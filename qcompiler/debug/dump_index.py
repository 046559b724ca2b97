"""The readable part of a dump: index.md with the passes, where the time went, and the remarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qcompiler.compile.journal import PassRecord, Remark
from qcompiler.compile.pass_manager import Context


@dataclass(frozen=True)
class Entry:
    """One pass of the index, with the names of its files."""

    record: PassRecord
    changed: bool
    files: tuple[str, ...]


def text(title: str, entries: Sequence[Entry], context: Context, error: str = "", note: str = "") -> str:
    """index.md. Only its section "Time" differs between two runs of the same model."""
    rows = ["| 0 | input | | | | 00-input.ir 00-input.py |"]
    rows += [_row(number, entry) for number, entry in enumerate(entries, 1)]
    parts = [f"# {title}", *([f"FAILED: {error}"] if error else []), *([note] if note else []), "## Passes",
             "\n".join(["| # | pass | changed | nodes | rewrites | files |", "|---|---|---|---|---|---|", *rows]),
             "Final graph: 99-final.ir, 99-final.py. One JSON line a pass: passes.jsonl.",
             "## Remarks", "\n".join(map(remark_line, context.journal.remarks)) or "None.",
             "## Time", timing_table([entry.record for entry in entries])]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _row(number: int, entry: Entry) -> str:
    record = entry.record
    changed = "not run" if record.skipped else "yes" if entry.changed else "no"
    nodes = f"{record.nodes_before} → {record.nodes_after}" if record.nodes_before != record.nodes_after else str(record.nodes_after)
    return f"| {number} | {record.name} | {changed} | {nodes} | {record.matches or ''} | {' '.join(entry.files)} |"


def remark_line(remark: Remark) -> str:
    """`- fuse several-users %bn: ... (layer1.0, net.py:12)` on one line, whatever the model's names hold."""
    place = ", ".join(part for part in (remark.where.module_path, remark.where.source) if part)
    node = f" %{remark.node}" if remark.node else ""
    return " ".join(f"- {remark.pass_name} `{remark.code}`{node}: {remark.text}{f' ({place})' if place else ''}".split())


def timing_table(records: Iterable[PassRecord]) -> str:
    """Where the time went, as Markdown: `total` is a pass with the verifier behind it, `self` the pass alone."""
    records = list(records)
    whole = sum(r.milliseconds for r in records) or 1e-9
    verify = sum(r.verify_ms for r in records)
    lines = ["| pass | total ms | self ms | % |", "|---|---|---|---|"]
    for r in records:
        lines.append(f"| {r.name} | {r.milliseconds:.1f} | {r.milliseconds - r.verify_ms:.1f} | {100 * r.milliseconds / whole:.1f} |")
    lines.append(f"| all | {whole:.1f} | {whole - verify:.1f} | 100.0 |")
    return "\n".join([*lines, "", f"The verifier took {verify:.1f} ms, {100 * verify / whole:.1f} %."])
