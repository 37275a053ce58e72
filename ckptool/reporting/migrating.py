"""MigrationResult -> MigrateReport."""

from typing import TYPE_CHECKING

from ckptool.locations import masked
from ckptool.model import Skipped
from ckptool.policy import ExitCode, Verdict
from ckptool.report import CheckReport, MigrateReport, StepReport
from ckptool.reporting.parts import counts, findings, silenced, skipped_reports

if TYPE_CHECKING:
    from ckptool.migration.ops import Operation
    from ckptool.migration.run import Migration


def migrated(done: "Migration", verdict: Verdict) -> MigrateReport:
    """Build the report of a migration or of its dry run."""
    met, digests = done.loading, done.digests
    return MigrateReport(
        command="migrate",
        findings=findings(verdict),
        silenced=silenced(verdict),
        skipped=skipped_reports(
            [
                *done.checkpoint.skipped,
                *(done.module.skipped if done.module else ()),
                *(Skipped(c.name, c.reason) for c in done.checks if c.result == "skipped"),
            ]
        ),
        exit_code=verdict.exit_code if met is not None and not met.strict else ExitCode.PASSED,
        verdict=_migration_words(done),
        source=str(done.checkpoint.path),
        source_container=str(done.checkpoint.container),
        target=str(done.target) if digests else "",
        target_container=str(done.container),
        at=done.state.at,
        module=done.module.target if done.module else "",
        steps=tuple(map(_step, done.plan.ops)),
        checks=tuple(
            CheckReport(name=c.name, result=c.result, reason=c.reason) for c in done.checks
        ),
        notes=done.notes,
        source_digest=digests.source if digests else "",
        result_digest=digests.result if digests else "",
    )


def _step(op: "Operation") -> StepReport:
    before, after = op.words
    return StepReport(
        op=str(op.__struct_config__.tag),
        before=before,
        after=after,
        why=op.why,
        source=masked(getattr(op, "source", "")),
        loses=op.loses,
    )


def _migration_words(done: "Migration") -> str:
    met, passed = done.loading, any(c.result == "passed" for c in done.checks)
    if done.again:
        what = "nothing to do, the plan was applied already"
    elif done.plan.ops:
        what = "migrated"
    else:
        what = "converted" if done.converted else "nothing to do"
    if done.digests is None:
        what = "planned (dry run)" if done.plan.ops else f"{what} (dry run)"
    if met is None:
        return what
    if not met.strict:
        return f"{what}: {counts(met)}".replace("does not", "would not")
    return f"{what}: {'loads' if passed else 'would load'} strictly"
