"""ConvertReport: the result of `convert`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.errors import CkptoolError
from ckptool.model import Skipped
from ckptool.phrases import join_limited, pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import Report, SkippedReport, build_skipped_reports
from ckptool.reports.migrate import CheckReport, StepReport, build_step_report

if TYPE_CHECKING:
    from ckptool.migration.plan.conversion import TreeChange
    from ckptool.migration.request import MigrationResult

_MAX_LISTED_STEPS: Final = 3
_REFUSED: Final = "torch.load(weights_only=True) refuses it"
_NOT_ASKED: Final = "not in the selected state_dict"
_NO_ROOM: Final = "the format stores tensors only"


class LeftOutReport(Struct, frozen=True, kw_only=True):
    """A value of the source that the result does not have, or has in another form."""

    place: str
    before: str
    """What it is in the source: "argparse.Namespace", "12 tensors"."""
    after: str
    """What it is in the result: "dict"; "" if it is left out."""
    reason: str


class ConversionReport(Struct, frozen=True, kw_only=True):
    """One converted checkpoint."""

    source: str
    source_container: str
    target: str
    """"" if nothing was written (dry run)."""
    target_container: str
    at: str
    """Place of the state in the source."""
    tensors: int
    nbytes: int
    """Bytes of the elements of all tensors of the result's state."""
    left_out: tuple[LeftOutReport, ...]
    """What the result does not have, by place."""
    changed: tuple[LeftOutReport, ...]
    """What the result has in another form, by place."""
    steps: tuple[StepReport, ...]
    checks: tuple[CheckReport, ...]
    notes: tuple[str, ...]
    source_digest: str
    """Digest of the state's content, independent of the container; "" if nothing was written."""
    result_digest: str
    skipped: tuple[SkippedReport, ...] = ()
    """What was not looked at or not checked, such as other files of a folder."""


class ConvertReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"converted ...", "planned (dry run) ...", or "2 of 3 checkpoints converted"."""
    conversions: tuple[ConversionReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each source that was not converted."""


def build_conversion_report(result: "MigrationResult") -> ConversionReport:
    """Build the report of one conversion or of its dry run."""
    digests, changes = result.digests, result.tree_changes
    stripped = tuple(
        LeftOutReport(place=place, before="", after="", reason="--strip")
        for place in result.stripped_places
    )
    omission_reason = _NOT_ASKED if result.is_alone else _NO_ROOM
    return ConversionReport(
        source=str(result.checkpoint.path),
        source_container=str(result.checkpoint.container),
        target=str(result.target) if digests else "",
        target_container=str(result.container),
        at=result.state.at,
        tensors=len(result.tensors),
        nbytes=sum(tensor.nbytes for tensor in result.tensors.values()),
        left_out=(
            *stripped,
            *(_build_left_out(c, omission_reason) for c in result.omitted),
            *(_build_left_out(c, _REFUSED) for c in changes if not c.after),
        ),
        changed=tuple(_build_left_out(c, _REFUSED) for c in changes if c.after),
        steps=tuple(map(build_step_report, result.plan.ops)),
        checks=tuple(
            CheckReport(name=c.name, result=c.result, reason=c.reason) for c in result.checks
        ),
        notes=result.notes,
        source_digest=digests.source if digests else "",
        result_digest=digests.result if digests else "",
        skipped=build_skipped_reports(
            (
                *result.checkpoint.skipped,
                *(Skipped(c.name, c.reason) for c in result.checks if c.result == "skipped"),
            ),
            str(result.checkpoint.path),
        ),
    )


def build_convert_report(
    conversions: Sequence[ConversionReport], errors: Sequence[CkptoolError] = ()
) -> ConvertReport:
    """Build the report of all conversions of one command."""
    return ConvertReport(
        command="convert",
        findings=(),
        skipped=tuple(skipped for conversion in conversions for skipped in conversion.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else ExitCode.PASSED,
        verdict=_format_verdict(conversions, len(errors)),
        conversions=tuple(conversions),
        errors=tuple(map(str, errors)),
    )


def _build_left_out(change: "TreeChange", reason: str) -> LeftOutReport:
    return LeftOutReport(
        place=change.place, before=change.before, after=change.after, reason=reason
    )


def _format_verdict(conversions: Sequence[ConversionReport], error_count: int) -> str:
    count = len(conversions) + error_count
    is_dry_run = any(not conversion.target for conversion in conversions)
    action = "planned (dry run)" if is_dry_run else "converted"
    if count != 1:
        done = f"{len(conversions)} of {pluralize(count, 'checkpoint')}"
        return f"{action}: {done}" if is_dry_run else f"{done} converted"
    if not conversions:
        return "not converted"
    conversion = conversions[0]
    tensors = pluralize(conversion.tensors, "tensor")
    steps = join_limited(conversion.steps, _MAX_LISTED_STEPS, lambda step: step.op)
    return f"{action}: {tensors} to {conversion.target_container}{f' ({steps})' if steps else ''}"
