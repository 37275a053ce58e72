"""RevisionReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, LinesBlock, VerdictBlock
from ckptool.render.views.migrate import build_steps_blocks
from ckptool.reports.migrate import list_assumptions
from ckptool.reports.revisions.revision import RevisionReport


def build_blocks(report: RevisionReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, what changed, the files, and the steps to review."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    steps = [step for new in report.revisions for step in new.steps]
    changed = [f"since the revision before: {report.difference}"] if report.difference else []
    assumed = [f"assumed: {text}" for text in list_assumptions(steps)]
    final = [f"cannot be undone: {report.irreversible}"] if report.irreversible else []
    yield LinesBlock((*changed, *report.files, *assumed, *final, *report.notes))
    yield from build_steps_blocks(steps, options)
