"""MigrateReport -> blocks."""

from collections.abc import Iterator, Sequence
from typing import Final

from ckptool.folding import name_like, replace_layer_numbers
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    VERDICT,
    WHY,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    VerdictBlock,
    build_table,
    fold_unless_verbose,
)
from ckptool.reports.migrate import MigrateManyReport, MigrateReport, StepReport, list_assumptions

_STEP: Final = Column("step", ColumnKind.EXACT)


def build_blocks(
    report: MigrateReport | MigrateManyReport, options: RenderOptions
) -> Iterator[Block]:
    if isinstance(report, MigrateManyReport):
        return _build_summary_blocks(report, options)
    return _build_migration_blocks(report, options)


def _build_summary_blocks(report: MigrateManyReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    rows = [(m.source, m.target or "nothing written", m.verdict) for m in report.migrations]
    if rows:
        columns = ("source", "target", VERDICT)
        yield build_table("Migrated", columns, rows, options)
    if report.errors:
        errors = [error.replace(": not migrated: ", ": ", 1) for error in report.errors]
        yield LinesBlock(tuple("\n".join(f"not migrated: {e}" for e in errors).splitlines()))
    if options.verbosity > 0:
        for migration in report.migrations:
            yield from _build_migration_blocks(migration, options)


def _build_migration_blocks(report: MigrateReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    location = f" at `{report.at}`" if report.at else ""
    module_text = f" for {report.module}" if report.module else ""
    target = report.target or "nothing written"
    passed_checks = [
        f"checked: {c.name}: {c.reason}" for c in report.checks if c.result == "passed"
    ]
    assumptions = [f"assumed: {text}" for text in list_assumptions(report.steps)]
    yield LinesBlock(
        (
            f"{report.source}{location}{module_text} -> {target}",
            *passed_checks,
            *assumptions,
            *report.notes,
        )
    )
    yield from build_steps_blocks(report.steps, options)


def build_steps_blocks(steps: Sequence[StepReport], options: RenderOptions) -> Iterator[Block]:
    """Yield the table of the steps of a plan, and what they lose."""
    groups = fold_unless_verbose(((s.before, _describe_step(s), s) for s in steps), options)
    rows = [
        (
            first.op,
            group.key,
            name_like(group, first.after),
            f"{len(group.items):,}",
            (_name_source(first) if len(group.items) > 1 else first.source) or "-",
            name_like(group, first.why),
        )
        for group in groups
        for first in group.items[:1]
    ]
    if rows:
        headers = (_STEP, "before", "after", COUNT, "value from", WHY)
        yield build_table("Plan", headers, rows, options)
    losses = [
        f"{group.items[0].op} {group.key} loses {group.items[0].loses}"
        for group in groups
        if group.items[0].loses
    ]
    if losses:
        yield LinesBlock(tuple(losses))


def _describe_step(step: StepReport) -> tuple[str, ...]:
    """Return what is equal in steps that differ in layer numbers only."""
    return (
        step.op,
        replace_layer_numbers(step.after),
        _name_source(step),
        replace_layer_numbers(step.why),
        step.loses,
    )


def _name_source(step: StepReport) -> str:
    """Return the source with "*" for the layer numbers of its key; a path keeps its own."""
    place, mark, key = step.source.rpartition("#")
    return f"{place}{mark}{replace_layer_numbers(key)}"
