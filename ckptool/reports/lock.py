"""LockReport: the result of `lock`."""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from ckptool.compare.contracts.contract import Contract
from ckptool.compare.contracts.contract_diff import (
    Compatibility,
    ContractDiff,
    EntryDifference,
    iter_entry_differences,
)
from ckptool.model import Skipped
from ckptool.phrases import pluralize
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import Report, build_finding_reports, build_skipped_reports


class DifferenceReport(Struct, frozen=True, kw_only=True):
    """One difference between a lock and the current state."""

    key: str
    what: str
    """"added", "removed", "shape", "dtype", "kind", "saved", "owner", "version" ..."""
    old: str
    new: str


class LockReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"locked ...", "the lock is up to date", "the lock is stale ..." or "recorded"."""
    path: str
    """The lock file that was written or checked."""
    source: str
    """"module" or "checkpoint"."""
    name: str
    name_before: str
    """Source of the previous lock, "" if it is the same."""
    keys: int
    unsaved: int
    """Number of tensors of the module that are not in its state_dict."""
    compatibility: str
    """"the same", "compatible", "additive" or "breaking"; "" without a previous lock."""
    differences: tuple[DifferenceReport, ...]
    golden: str = ""
    """The checkpoint whose outputs were recorded, "" if a lock was written."""
    is_unchanged: bool = False
    """Whether the lock on disk was the same already."""
    notes: tuple[str, ...] = ()

    @property
    def has_details(self) -> bool:
        return bool(self.differences or self.name_before) or super().has_details


class ProjectLockReport(Report, frozen=True, kw_only=True):
    """The locks of the modules of the configuration, each with a report of its own."""

    verdict: str
    locks: tuple[LockReport, ...]
    errors: tuple[str, ...] = ()
    """Modules that could not be locked or checked, and why."""

    @property
    def module_reports(self) -> tuple[LockReport, ...]:
        return self.locks


class LockOutcome(Struct, frozen=True):
    """Result of writing or checking a lock, or of recording golden outputs."""

    path: Path
    contract: Contract
    contract_diff: ContractDiff | None
    """Diff of the previous lock and the current contract; None without a previous lock."""
    is_unchanged: bool
    is_check: bool
    golden: str = ""
    """The checkpoint whose outputs were recorded, "" if a lock was written."""
    input_source: str = ""
    """Source of the recorded inputs, "" if a lock was written."""
    skipped: tuple[Skipped, ...] = ()


def build_lock_report(outcome: LockOutcome, verdict: Verdict) -> LockReport:
    """Build the report of the contract and its differences from the previous lock."""
    entries = outcome.contract.entries.values()
    lock_differences = _build_lock_differences(outcome)
    return LockReport(
        command="lock",
        findings=build_finding_reports(verdict),
        skipped=build_skipped_reports(outcome.skipped),
        exit_code=verdict.exit_code,
        verdict=_format_lock_verdict(outcome, len(lock_differences)),
        path=str(outcome.path),
        source=str(outcome.contract.origin),
        name=outcome.contract.origin_name,
        name_before=_format_previous_name(outcome),
        keys=sum(entry.saved for entry in entries) + len(outcome.contract.non_tensors),
        unsaved=sum(not entry.saved for entry in entries),
        compatibility=str(outcome.contract_diff.compatibility) if outcome.contract_diff else "",
        differences=lock_differences,
        golden=outcome.golden,
        is_unchanged=outcome.is_unchanged,
        notes=(f"input: {outcome.input_source}",) if outcome.input_source else (),
    )


def build_project_lock_report(
    locks: tuple[LockReport, ...],
    errors: tuple[str, ...],
    skipped_locks: tuple[Skipped, ...],
    *,
    is_check: bool,
) -> ProjectLockReport:
    """Build the report of the locks of a configuration; an error makes it "could not check"."""
    exit_codes = [lock.exit_code for lock in locks]
    return ProjectLockReport(
        command="lock",
        findings=tuple(finding for lock in locks for finding in lock.findings),
        skipped=tuple(
            dict.fromkeys(
                (
                    *(skipped for lock in locks for skipped in lock.skipped),
                    *build_skipped_reports(skipped_locks),
                )
            )
        ),
        exit_code=int(ExitCode.COULD_NOT_CHECK) if errors else max(exit_codes, default=0),
        verdict=_format_locks_verdict(locks, len(errors), is_check=is_check),
        locks=locks,
        errors=errors,
    )


def _format_locks_verdict(
    locks: tuple[LockReport, ...], error_count: int, *, is_check: bool
) -> str:
    total = pluralize(len(locks) + error_count, "lock", "")
    changed_count = sum(not lock.is_unchanged for lock in locks)
    states = {
        "out of date" if is_check else "written": changed_count,
        "unchanged": len(locks) - changed_count,
        "with an error": error_count,
    }
    return f"{total}: " + ", ".join(f"{count} {state}" for state, count in states.items() if count)


def _build_difference_reports(
    contract_differences: Iterable[EntryDifference],
) -> tuple[DifferenceReport, ...]:
    return tuple(
        DifferenceReport(
            key=difference.key, what=difference.aspect, old=difference.old, new=difference.new
        )
        for difference in contract_differences
    )


def _format_previous_name(outcome: LockOutcome) -> str:
    if outcome.contract_diff is None:
        return ""
    old, new = outcome.contract_diff.old, outcome.contract_diff.new
    is_same_source = (old.origin, old.origin_name) == (new.origin, new.origin_name)
    return "" if is_same_source else f"{old.origin} {old.origin_name}"


def _build_lock_differences(outcome: LockOutcome) -> tuple[DifferenceReport, ...]:
    if outcome.contract_diff is None or outcome.is_unchanged:
        return ()
    return _build_difference_reports(
        iter_entry_differences(outcome.contract_diff.old, outcome.contract_diff.new, exact=True)
    )


def _format_lock_verdict(outcome: LockOutcome, difference_count: int) -> str:
    if outcome.golden:
        return "recorded"
    difference_text = (
        pluralize(difference_count, "difference", "") if difference_count else "a different name"
    )
    if outcome.contract_diff is None:
        return "locked"
    if outcome.is_unchanged:
        return "the lock is up to date"
    compatibility = outcome.contract_diff.compatibility
    compatibility_text = "" if compatibility is Compatibility.SAME else f"{compatibility}, "
    return (
        f"the lock is out of date: {compatibility_text}{difference_text}"
        if outcome.is_check
        else f"lock updated: {compatibility_text}{difference_text}"
    )
