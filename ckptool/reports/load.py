"""LoadReport: the result of `load`."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ckptool.phrases import pluralize
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
)
from ckptool.reports.migrate import StepReport, build_step_report

if TYPE_CHECKING:
    from ckptool.migration.load.planned_load import PlannedLoad
    from ckptool.migration.plan.operation import Operation
    from ckptool.model import Checkpoint
    from ckptool.modules.live.load_call import LoadedKeys

_MAX_QUESTIONS: Final = 20
"""Maximum number of questions in the short form."""


class LoadReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"loaded strictly ...", "loaded in part: ..." or "not loaded: ..."."""
    path: str
    container: str
    at: str
    """Key path of the state_dict inside the file."""
    module: str
    """Class of the module."""
    tensor_count: int = 0
    """Number of tensors that were given to `load_state_dict`; 0 if nothing was loaded."""
    nbytes: int = 0
    """Bytes of their elements in the file."""
    steps: tuple[StepReport, ...] = ()
    """What was done with the file's state_dict before, as a migration does."""
    missing: tuple[str, ...] = ()
    """Keys of the module that were not loaded."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that the module does not have."""
    questions: tuple[str, ...] = ()
    """Open questions, each with the `accept=[...]` that answers it."""
    notes: tuple[str, ...] = ()


def format_short(report: LoadReport) -> str:
    """Return the verdict, and below it the open questions: the text of a `LoadError`."""
    shown = report.questions[:_MAX_QUESTIONS]
    more = len(report.questions) - len(shown)
    ending = (f"and {more} more",) if more else ()
    return "\n  ".join((f"{report.path}: {report.verdict}", *shown, *ending))


def build_load_report(
    planned: "PlannedLoad",
    module_name: str,
    keys: "LoadedKeys",
    verdict: Verdict,
    notes: tuple[str, ...],
    questions: tuple[str, ...],
) -> LoadReport:
    """Build the report of a load that did not raise."""
    checkpoint = planned.draft.checkpoint
    items = planned.draft.items.values()
    return LoadReport(
        command="load",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports([*checkpoint.skipped, *planned.diff.module.skipped]),
        exit_code=verdict.exit_code,
        verdict=_format_verdict(len(planned.plan.ops), keys),
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        at=planned.draft.state.at,
        module=module_name,
        tensor_count=len(items),
        nbytes=sum(item.tensor.nbytes for item in items),
        steps=tuple(map(_build_step, planned.plan.ops)),
        missing=keys.missing,
        unexpected=keys.unexpected,
        questions=questions,
        notes=notes,
    )


def build_refusal_report(
    checkpoint: "Checkpoint", module_name: str, reason: str, questions: tuple[str, ...] = ()
) -> LoadReport:
    """Build the report of a load that was refused, and the module left as it was."""
    count = pluralize(len(questions), "open question")
    return LoadReport(
        command="load",
        findings=(),
        skipped=build_skipped_reports(checkpoint.skipped),
        exit_code=ExitCode.FAILED,
        verdict=f"not loaded: {reason or count}",
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        at="",
        module=module_name,
        questions=questions,
    )


def _build_step(op: "Operation") -> StepReport:
    step = build_step_report(op)
    return replace(step, assumption=step.assumption.replace("according to --rename", "as asked"))


def _format_verdict(step_count: int, keys: "LoadedKeys") -> str:
    after = f" after {pluralize(step_count, 'step')}" if step_count else ""
    counts = [f"{len(keys.missing)} missing"] if keys.missing else []
    counts += [f"{len(keys.unexpected)} unexpected"] if keys.unexpected else []
    return f"loaded in part{after}: {', '.join(counts)}" if counts else f"loaded strictly{after}"
