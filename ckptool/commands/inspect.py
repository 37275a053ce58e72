"""Checkpoint files -> InspectReport: tensors, entries and issues, without executing anything."""

from collections.abc import Sequence

from ckptool.commands.target import PathLike, open_checkpoint_or_stdin
from ckptool.errors import ReadError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.model import Checkpoint
from ckptool.policy import Policy, judge
from ckptool.reports.inspect import InspectReport, build_inspect_report
from ckptool.rules import run_rules
from ckptool.rules.registry import sort_findings
from ckptool.tensors.checkpoint_statistics import (
    CheckpointStatistics,
    compute_checkpoint_statistics,
)


def inspect(
    paths: PathLike | Sequence[PathLike],
    *,
    values: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    pictures: bool = False,
) -> InspectReport:
    """Describe the contents of checkpoints without loading or executing anything.

    With `values`, also compute statistics and apply the rules CK4xx: this reads whole files and
    needs torch. A path that cannot be read is reported in `errors`; the others are still described.
    With `pictures`, read the values of small masks, for drawing.
    """
    checkpoints_with_statistics: list[tuple[Checkpoint, tuple[CheckpointStatistics, ...]]] = []
    errors: list[ReadError] = []
    for path in [paths] if isinstance(paths, PathLike) else paths:
        try:
            checkpoint = open_checkpoint_or_stdin(path, limits)
            checkpoints_with_statistics.append(
                (checkpoint, (compute_checkpoint_statistics(checkpoint),) if values else ())
            )
        except ReadError as error:
            errors.append(error)
    findings = sort_findings(
        finding
        for opened_checkpoint, statistics in checkpoints_with_statistics
        for finding in run_rules([opened_checkpoint, *statistics], opened_checkpoint.path)
    )
    skipped_values = tuple(
        skip
        for _, statistics in checkpoints_with_statistics
        for statistics_result in statistics
        for skip in statistics_result.skipped
    )
    checkpoints = tuple(opened_checkpoint for opened_checkpoint, _ in checkpoints_with_statistics)
    inspect_report = build_inspect_report(
        checkpoints, judge(findings, policy or Policy()), errors, skipped_values
    )
    if not pictures:
        return inspect_report
    from ckptool.commands.previews import add_checkpoint_previews

    return add_checkpoint_previews(inspect_report, checkpoints)
