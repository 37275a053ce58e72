"""LockOutcome -> LockReport."""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from ckptool.contract import Contract, Difference, Holding, Standing, differences
from ckptool.model import Skipped
from ckptool.policy import Verdict
from ckptool.report import DifferenceReport, LockReport
from ckptool.reporting.parts import counted, findings, skipped_reports


class Locked(Struct, frozen=True):
    """Result of writing or checking a lock, or of recording golden outputs."""

    path: Path
    contract: Contract
    holding: Holding | None
    """Diff of the previous lock and the current contract; None without a previous lock."""
    same: bool
    check: bool
    golden: str = ""
    """The checkpoint whose outputs were recorded, "" if a lock was written."""
    source: str = ""
    """Source of the recorded inputs, "" if a lock was written."""
    skipped: tuple[Skipped, ...] = ()


def locked(done: Locked, verdict: Verdict) -> LockReport:
    """Build the report of the contract and its differences from the previous lock."""
    terms = done.contract.terms.values()
    changed = _differences(done)
    return LockReport(
        command="lock",
        findings=findings(verdict),
        skipped=skipped_reports(done.skipped),
        exit_code=verdict.exit_code,
        verdict=_words(done, len(changed)),
        path=str(done.path),
        source=str(done.contract.source),
        name=done.contract.taken_from,
        name_before=_name_before(done),
        keys=sum(term.saved for term in terms) + len(done.contract.others),
        unsaved=sum(not term.saved for term in terms),
        standing=str(done.holding.standing) if done.holding else "",
        differences=changed,
        golden=done.golden,
        notes=(f"input: {done.source}",) if done.source else (),
    )


def difference_reports(found: Iterable[Difference]) -> tuple[DifferenceReport, ...]:
    return tuple(
        DifferenceReport(key=one.key, what=one.what, old=one.old, new=one.new) for one in found
    )


def _name_before(done: Locked) -> str:
    if done.holding is None:
        return ""
    before, now = done.holding.old, done.holding.new
    same = (before.source, before.taken_from) == (now.source, now.taken_from)
    return "" if same else f"{before.source} {before.taken_from}"


def _differences(done: Locked) -> tuple[DifferenceReport, ...]:
    if done.holding is None or done.same:
        return ()
    return difference_reports(differences(done.holding.old, done.holding.new, exact=True))


def _words(done: Locked, changed: int) -> str:
    if done.golden:
        return "recorded"
    count = counted(changed, "difference") if changed else "of another name"
    if done.holding is None:
        return "locked"
    if done.same:
        return "the lock holds" if done.check else "locked already, and nothing has changed"
    standing = done.holding.standing
    how = "" if standing is Standing.SAME else f"{standing}, "
    return f"the lock is stale: {how}{count}" if done.check else f"locked anew: {how}{count}"
