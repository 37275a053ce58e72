"""GateInput -> GateReport, Setting -> PolicyReport."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.compare import Loading
from ckptool.model import Checkpoint, Skipped
from ckptool.policy import ExitCode, Verdict
from ckptool.policy.effective import Setting
from ckptool.report import FindingReport, GatedReport, GateReport, PolicyReport, SettingReport
from ckptool.reporting.checking import level_report
from ckptool.reporting.parts import counted, findings, silenced, skipped_reports
from ckptool.reporting.promises import HeldTo, promise_reports
from ckptool.rules.requirements import UPKEEP

if TYPE_CHECKING:
    from ckptool.verification.facts import Verification


class Gated(Struct, frozen=True):
    """The results of one checkpoint (or of a module without one) in a gate."""

    path: str
    checkpoint: Checkpoint | None
    loading: Loading | None
    verification: "Verification | None"
    skipped: tuple[Skipped, ...]
    rules: tuple[str, ...]
    held: HeldTo = HeldTo()


def gated(
    done: Sequence[Gated],
    errors: Mapping[str, str],
    order: tuple[str, ...],
    verdict: Verdict,
    source: str,
) -> GateReport:
    """Build the report of a release, with the checkpoints in the given order."""
    found = findings(verdict)
    by_path = {one.path: _gated(one, found) for one in done}
    by_path |= {path: _unread(path, error) for path, error in errors.items()}
    checkpoints = tuple(by_path[path] for path in dict.fromkeys(order))
    code = ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code
    return GateReport(
        command="gate",
        findings=found,
        silenced=silenced(verdict),
        skipped=tuple(s for one in done for s in skipped_reports(one.skipped, one.path)),
        exit_code=code,
        verdict=_words(checkpoints, found, len(verdict.silenced), code),
        checkpoints=checkpoints,
        policy=source,
        errors=tuple(errors.values()),
    )


def shown(settings: Mapping[str, tuple[Setting, ...]]) -> PolicyReport:
    """Build the report of the settings that apply to each path."""
    return PolicyReport(
        command="gate",
        findings=(),
        skipped=(),
        exit_code=ExitCode.PASSED,
        settings=tuple(
            SettingReport(name=s.name, value=s.value, origin=s.origin, path=path)
            for path, found in settings.items()
            for s in found
        ),
    )


def _gated(one: Gated, found: tuple[FindingReport, ...]) -> GatedReport:
    mine = [f for f in found if f.path == one.path]
    failing = sum(f.fails for f in mine)
    met, done = one.loading, one.verification
    said = _levels(mine)
    return GatedReport(
        path=one.path,
        verdict=f"{'failed' if failing else 'passed'}{f': {said}' if said else ''}",
        passed=not failing,
        container=str(one.checkpoint.container) if one.checkpoint else "",
        nbytes=one.checkpoint.nbytes if one.checkpoint else 0,
        module=met.module.target if met else "" if one.checkpoint else one.path,
        at=met.state.at if met else "",
        rules=one.rules,
        levels=tuple(map(level_report, done.levels)) if done else (),
        promises=promise_reports(one.held),
    )


def _unread(path: str, error: str) -> GatedReport:
    reason = error.removeprefix(f"{path}: ")
    return GatedReport(path=path, verdict=f"could not be checked: {reason}", passed=False)


def _levels(found: list[FindingReport]) -> str:
    counts = {level: sum(f.level == level for f in found) for level in ("error", "warning", "note")}
    return ", ".join(counted(n, word) for word, n in counts.items() if n)


def _words(
    checkpoints: tuple[GatedReport, ...],
    found: tuple[FindingReport, ...],
    silent: int,
    code: ExitCode,
) -> str:
    total = len(checkpoints)
    unread = sum(one.unread for one in checkpoints)
    failed = sum(not one.passed for one in checkpoints) - unread
    modules = bool(checkpoints) and not unread and not any(one.container for one in checkpoints)
    noun = "module" if modules else "checkpoint"
    alone = total == 1 and modules
    release = "the module" if alone else counted(total, noun)
    waived = f", {counted(silent, 'finding')} waived or known" if silent else ""
    if code == ExitCode.PASSED:
        said = _levels(list(found))
        return f"gate passed: {release}{f', {said}' if said else ''}{waived}"
    parts = [release if alone else f"{failed} of {release}"] if failed else []
    if any(f.fails and f.code in UPKEEP for f in found):
        parts.append("the policy itself needs work")
    if unread:
        parts.append(f"{unread} of {release} could not be checked")
    word = "failed" if failed or code == ExitCode.FAILED else "could not check"
    return f"gate {word}: {', and '.join(parts)}{waived}"
