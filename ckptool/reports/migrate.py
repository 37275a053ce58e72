"""MigrateReport: the result of `migrate`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import CkptoolError
from ckptool.locations import mask_credentials
from ckptool.model import Skipped
from ckptool.phrases import MAX_NAMED, join_limited, pluralize, quote_code, quote_path
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    format_load_failure,
    format_strict_load,
    format_unchecked_load,
)

if TYPE_CHECKING:
    from ckptool.migration.plan.operation import Operation
    from ckptool.migration.request import MigrationResult


class StepReport(Struct, frozen=True, kw_only=True):
    """One operation of a plan."""

    op: str
    before: str
    after: str
    why: str
    assumption: str = ""
    """What the step assumes without proof, else ""."""
    source: str = ""
    """Source of an injected value, else ""."""
    loses: str = ""
    """What the operation removes from the result, else ""."""


class CheckReport(Struct, frozen=True, kw_only=True):
    name: str
    result: str
    """"passed" or "skipped"; a failed check raises an error and nothing is written."""
    reason: str


class MigrateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"migrated ...", "converted ...", "copied without changes ...", "planned (dry run) ..." or
    "nothing to change (dry run) ..."."""
    source: str
    source_container: str
    target: str
    """"" if nothing was written."""
    target_container: str
    at: str
    module: str
    """"" without one."""
    steps: tuple[StepReport, ...]
    checks: tuple[CheckReport, ...]
    notes: tuple[str, ...]
    source_digest: str
    """Digest of the state's content, independent of the container; "" if nothing was written."""
    result_digest: str


class MigrateManyReport(Report, frozen=True, kw_only=True):
    """The result of `migrate` of several checkpoints."""

    verdict: str
    """"2 of 3 checkpoints migrated"."""
    migrations: tuple[MigrateReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each source that was not migrated."""


def list_assumptions(steps: Sequence[StepReport]) -> tuple[str, ...]:
    """Return what the steps rest on without proof, each once, in order."""
    return tuple(dict.fromkeys(step.assumption for step in steps if step.assumption))


def build_migrate_report(migration: "MigrationResult", verdict: Verdict) -> MigrateReport:
    """Build the report of a migration or of its dry run."""
    diff, digests = migration.diff, migration.digests
    return MigrateReport(
        command="migrate",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(
            [
                *migration.checkpoint.skipped,
                *(migration.module_info.skipped if migration.module_info else ()),
                *(Skipped(c.name, c.reason) for c in migration.checks if c.result == "skipped"),
            ]
        ),
        exit_code=verdict.exit_code if diff is not None and not diff.is_strict else ExitCode.PASSED,
        verdict=_format_migrate_verdict(migration),
        source=str(migration.checkpoint.path),
        source_container=str(migration.checkpoint.container),
        target=str(migration.target) if digests else "",
        target_container=str(migration.container),
        at=migration.state.at,
        module=migration.module_info.label if migration.module_info else "",
        steps=tuple(map(build_step_report, migration.plan.ops)),
        checks=tuple(
            CheckReport(name=c.name, result=c.result, reason=c.reason) for c in migration.checks
        ),
        notes=(*migration.notes, *_describe_refusal_fix(migration)),
        source_digest=digests.source if digests else "",
        result_digest=digests.result if digests else "",
    )


def build_many_report(
    migrations: Sequence[MigrateReport], errors: Sequence[CkptoolError]
) -> MigrateManyReport:
    """Build the report of several migrations; its exit code is the worst of them."""
    count = pluralize(len(migrations) + len(errors), "checkpoint")
    codes = [migration.exit_code for migration in migrations]
    return MigrateManyReport(
        command="migrate",
        findings=tuple(finding for m in migrations for finding in m.findings),
        silenced=tuple(silenced for m in migrations for silenced in m.silenced),
        skipped=tuple(replace(skipped, path=m.source) for m in migrations for skipped in m.skipped),
        exit_code=max([*codes, ExitCode.COULD_NOT_CHECK if errors else ExitCode.PASSED]),
        verdict=f"{len(migrations)} of {count} migrated",
        migrations=tuple(migrations),
        errors=tuple(map(str, errors)),
    )


def build_step_report(op: "Operation") -> StepReport:
    """Build the report of one operation."""
    before, after = op.before_after_text
    return StepReport(
        op=str(op.__struct_config__.tag),
        before=before,
        after=after,
        why=op.why,
        assumption=op.assumption,
        source=mask_credentials(getattr(op, "source", "")),
        loses=op.data_loss,
    )


def _describe_refusal_fix(migration: "MigrationResult") -> Iterator[str]:
    """Yield how to get a file that torch.load reads by default, if the result is none."""
    if migration.refused_globals:
        path = quote_path(str(migration.target or "FILE"))
        yield (
            "for a file that torch.load reads by default: --drop-extra writes the state alone; to"
            f" keep the rest as plain data: ckptool convert {path} -o NEW.pth"
        )


def _format_migrate_verdict(migration: "MigrationResult") -> str:
    text = _format_result(migration)
    if not migration.refused_globals:
        return text
    names = join_limited(migration.refused_globals, MAX_NAMED, quote_code)
    return f"{text}; torch.load refuses the file by default (weights_only=True): {names}"


def _format_result(migration: "MigrationResult") -> str:
    diff, has_passed_check = migration.diff, any(c.result == "passed" for c in migration.checks)
    action = _format_action(migration)
    if diff is None:
        is_unmigrated = not (migration.plan.ops or migration.is_converted)
        return f"{action}: no module was given" if is_unmigrated else action
    if not diff.is_strict:
        return f"{action}: {format_load_failure(diff, 'would not load')}"
    place = f" into `{diff.module.submodule}`" if diff.module.submodule else ""
    if diff.unchecked_load is not None and not has_passed_check:
        return f"{action}: {format_unchecked_load(diff, diff.unchecked_load)}"
    verb = "loads" if has_passed_check else "would load"
    return f"{action}: {format_strict_load(diff, verb)}{place}"


def _format_action(migration: "MigrationResult") -> str:
    """Return what was done, or in a dry run would be done, with the source."""
    is_dry_run = migration.digests is None
    if migration.already_applied:
        action = "nothing to change (dry run)" if is_dry_run else "copied without changes"
        return f"{action}: the plan was already applied"
    if migration.plan.ops:
        return "planned (dry run)" if is_dry_run else "migrated"
    if migration.is_converted:
        return "converted (dry run)" if is_dry_run else "converted"
    return "nothing to change (dry run)" if is_dry_run else "copied without changes"
