"""DiffModuleReport -> blocks."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.folding import name_like, replace_layer_numbers
from ckptool.model import natural_sort_key
from ckptool.phrases import pluralize_mismatches
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    VALUE,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    VerdictBlock,
    build_table,
    fold_keys,
    fold_unless_verbose,
)
from ckptool.render.views.audit import build_unsaved_table, iter_fix_hint
from ckptool.reports.common import FactReport
from ckptool.reports.diff import DiffModuleReport, KeyReport, LoadStepReport
from ckptool.rules.load.renames import PROBABLE_RENAME
from ckptool.rules.parts import LOAD_CAUSES, WHOLE_LOAD_FINDINGS
from ckptool.rules.quantization import QUANTIZATION_MISMATCH

_RULE: Final = Column("rule", ColumnKind.EXACT)
_PROBLEM: Final = Column("problem", ColumnKind.WORDS)
_LEVEL: Final = Column("level", ColumnKind.WORDS)
_EFFECT: Final = Column("the code", ColumnKind.WORDS)


def build_blocks(report: DiffModuleReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    sides = f"{report.path} against {report.module}"
    lines = (*_iter_cause_lines(report), sides, _format_key_counts(report), *report.notes)
    yield LinesBlock(lines)
    if report.explanation:
        yield from build_explanation_blocks(report.explanation, options)
        return
    if report.verdicts:
        yield _build_verdict_table(report.verdicts, options)
    if report.load_steps:
        yield _build_step_table(report, options)
    if report.unsaved:
        yield build_unsaved_table(report.unsaved, options)
    yield from iter_fix_hint(report.module, report.findings)


def _format_key_counts(report: DiffModuleReport) -> str:
    """Return "keys: 3 match, 1 missing ...", with the share of the parameters that would load."""
    if not report.are_keys_known:
        return "keys: not compared"
    counts = (
        f"{len(report.matched)} match",
        f"{len(report.missing_keys)} missing",
        f"{len(report.unexpected_keys)} unexpected",
        pluralize_mismatches(len(report.mismatched_keys)),
        *((f"{len(report.mistyped_keys)} without a tensor",) if report.mistyped_keys else ()),
    )
    percent = f"{100 * report.coverage:.0f}%"
    share = f"; {percent} of the parameters would load" if report.is_coverage_known else ""
    return f"keys: {', '.join(counts)}{share}"


def _build_step_table(report: DiffModuleReport, options: RenderOptions) -> TableBlock:
    """Build the table of what the loader does with keys that it does not merely copy."""
    steps = (
        (step.key, (_describe_step(step), replace_layer_numbers(step.file_key)), step)
        for step in report.load_steps
    )
    rows = [
        (
            group.key,
            f"{len(group.items):,}",
            _describe_step(group.items[0]),
            name_like(group, group.items[0].file_key) or "-",
        )
        for group in fold_unless_verbose(steps, options)
    ]
    columns = ("key", COUNT, _EFFECT, "from")
    whose = "module's own loading code" if report.loader == "torch" else "framework's loader"
    return build_table(f"What the {whose} does", columns, rows, options)


def build_explanation_blocks(
    facts: tuple[FactReport, ...], options: RenderOptions
) -> Iterator[Block]:
    yield build_table(
        "Details of this key",
        ("fact", VALUE),
        [(f.name, f.value) for f in facts],
        options,
    )


_MAX_EXPLAINED_ROWS: Final = 10
"""Rows of keys that findings on many keys explain; from this number on they are counted."""
_SHARED_CODES: Final = WHOLE_LOAD_FINDINGS | {PROBABLE_RENAME, QUANTIZATION_MISMATCH}
"""Findings on many keys: without this the table has a row for each key of the file."""


def _build_verdict_table(
    verdicts: tuple[KeyReport, ...], options: RenderOptions
) -> TableBlock | LinesBlock:
    # Such a finding is on nearly every key: without this the table has a row for each of them.
    visible = [v for v in verdicts if v.code not in _SHARED_CODES or options.verbosity > 0]
    hidden_count = len(verdicts) - len(visible)
    codes = [*dict.fromkeys(v.code for v in verdicts if v.code in _SHARED_CODES)]
    explained_clause = f"{' and '.join(codes)} {'explains' if len(codes) == 1 else 'explain'}"
    if hidden_count < _MAX_EXPLAINED_ROWS:
        visible, hidden_count = [*verdicts], 0
    problems = list(dict.fromkeys(verdict.problem for verdict in visible))
    folded_verdicts = sorted(
        fold_keys(((v.key, (v.problem, v.code), v) for v in visible), options),
        key=lambda group: (problems.index(group.items[0].problem), natural_sort_key(group.key)),
    )
    rows = [
        (
            group.key,
            f"{len(group.items):,}",
            _format_problems(group.items),
            ", ".join(dict.fromkeys(verdict.level or "ignored" for verdict in group.items)),
            ", ".join(dict.fromkeys(verdict.code for verdict in group.items if verdict.code)),
        )
        for group in folded_verdicts
    ]
    table = build_table(
        "Keys that do not match",
        (
            "key",
            COUNT,
            _PROBLEM,
            _LEVEL,
            _RULE,
        ),
        rows,
        options,
    )
    if not hidden_count:
        return table
    if not visible:
        return LinesBlock(
            (f"Keys that do not match: {hidden_count:,}, as {explained_clause} (-v shows all)",)
        )
    hidden_note = f"... and {hidden_count:,} keys that {explained_clause} (-v shows all)"
    return replace(table, more="; ".join(filter(None, (table.more, hidden_note))))


def _describe_step(step: LoadStepReport) -> str:
    """Return what is done with a key, and with how many others of the file."""
    if not step.operation or step.does == step.operation:
        return step.does
    count = len(step.file_keys)
    return f"{step.operation} ({count} keys)" if count > 1 else step.operation


def _format_problems(verdicts: tuple[KeyReport, ...]) -> str:
    """Return the problem of all keys, or the number of keys with each."""
    counts = Counter(verdict.problem for verdict in verdicts)
    if len(counts) == 1:
        return verdicts[0].problem
    return ", ".join(f"{count:,} {problem}" for problem, count in counts.items())


def _iter_cause_lines(report: DiffModuleReport) -> Iterator[str]:
    """Yield the finding that explains the load as a whole."""
    for finding in report.findings:
        if finding.code in LOAD_CAUSES:
            yield f"cause: {finding.message} ({finding.code})"
            return
