"""Run a command, and report what its loads and saves did."""

from collections.abc import Iterable, Iterator, Sequence

from ckptool.errors import UsageError
from ckptool.model import Skipped
from ckptool.phrases import join_limited, quote_code
from ckptool.policy import ExitCode, Policy, judge
from ckptool.reports.run import RunReport, build_resume_report, build_run_report
from ckptool.rules import Finding, run_rules
from ckptool.rules.fixes.run_fixes import name_command_file
from ckptool.rules.registry import sort_findings
from ckptool.tracing.merge import RunTrace, merge_records
from ckptool.tracing.records import AnyRecord
from ckptool.tracing.resume_check import check_resume
from ckptool.tracing.resume_comparison import ResumeComparison
from ckptool.tracing.traced_command import run_traced

_MAX_LISTED = 3
_OTHER_RANKS = "no optimizer step of theirs follows the compared save of rank 0 in every run"
_NO_TORCH = Skipped(
    "the command",
    "none of its processes imported torch, or they run Python with -I, -E or -S, which ignores "
    "PYTHONPATH",
)


def run(
    words: Sequence[str],
    *,
    policy: Policy | None = None,
    fails_on_findings: bool = False,
    resume_check: bool = False,
    resume_args: str | None = None,
) -> RunReport:
    """Run a command unmodified, and report what its loads and saves did.

    Args:
        words: the command: ["python", "train.py"].
        policy: reported findings, and the level from which they fail.
        fails_on_findings: whether findings that fail make the exit code 1 where the command's is 0.
        resume_check: whether it is also interrupted after its first checkpoint and resumed. What
            this finds makes the exit code 1 without `fails_on_findings`, and so does a comparison
            that could not be made.
        resume_args: what is added to the command to resume it, as in a shell, with
            `{checkpoint}` or `{folder}`; None adds nothing.

    Raises:
        UsageError: there is no command, or it cannot be started.
    """
    if not words:
        raise UsageError("no command was given: ckptool run -- python train.py")
    if resume_args is not None and not resume_check:
        raise UsageError("--resume-args is for --resume-check")
    comparison = None
    if resume_check:
        check = check_resume(words, resume_args or "")
        traced_run, comparison = check.run, check.comparison
    else:
        traced_run = run_traced(words)
    return judge_records(
        traced_run.records,
        policy or Policy(),
        command_exit_code=traced_run.exit_code,
        fails_on_findings=fails_on_findings,
        comparison=comparison,
    )


def judge_records(
    records: Iterable[AnyRecord],
    policy: Policy,
    *,
    command_exit_code: int | None = None,
    fails_on_findings: bool = True,
    comparison: ResumeComparison | None = None,
) -> RunReport:
    """Judge what the processes of a command recorded.

    Args:
        records: each process's in its order.
        policy: reported findings, and the level from which they fail.
        command_exit_code: that of the command; None if there is no command, as in a test session.
        fails_on_findings: whether findings that fail make the exit code 1 where the command's is 0.
        comparison: the result of a resume check, None without one.
    """
    trace = merge_records(records)
    findings = [*_iter_findings(trace), *(run_rules([comparison]) if comparison else ())]
    verdict = judge(sort_findings(findings), policy)
    has_failed = fails_on_findings and verdict.exit_code is ExitCode.FAILED
    has_failed = has_failed or (comparison is not None and _fails_check(comparison, policy))
    return build_run_report(
        trace,
        verdict,
        command_exit_code,
        exit_code=command_exit_code or int(has_failed),
        resume=build_resume_report(comparison) if comparison else None,
        skipped=_list_skipped(trace, command_exit_code, comparison),
    )


def _fails_check(comparison: ResumeComparison, policy: Policy) -> bool:
    """Whether the resumed run differs, or nothing could be compared."""
    if comparison.save is None:
        return True
    return judge(run_rules([comparison]), policy).exit_code is ExitCode.FAILED


def _list_skipped(
    trace: RunTrace, command_exit_code: int | None, comparison: ResumeComparison | None
) -> tuple[Skipped, ...]:
    has_processes = trace.processes or command_exit_code is None
    skipped = (*_iter_unknown_modules(trace), *(() if has_processes else (_NO_TORCH,)))
    if comparison is None:
        return skipped
    if comparison.save is None:
        return (*skipped, Skipped("the resumed run", comparison.reason))
    if comparison.unchecked_ranks:
        ranks = join_limited([f"rank {rank}" for rank in comparison.unchecked_ranks], _MAX_LISTED)
        skipped = (*skipped, Skipped(ranks, _OTHER_RANKS))
    names = comparison.save.random_names
    if not names:
        return skipped
    reason = "it differs between two uninterrupted runs, so nothing follows from a difference"
    return (*skipped, Skipped(join_limited(names, _MAX_LISTED, quote_code), reason))


def _iter_unknown_modules(trace: RunTrace) -> Iterator[Skipped]:
    """Yield the saved modules of which it is not known what they were when they were built."""
    names = (
        module.module
        for save in trace.saves
        for module in save.record.modules
        if not module.has_baseline
    )
    for name in dict.fromkeys(names):
        reason = "its construction was not seen: it was copied, unpickled or built under a debugger"
        yield Skipped(f"changes of {name} before its first save", reason)


def _iter_findings(trace: RunTrace) -> Iterator[Finding]:
    for load in trace.loads:
        yield from run_rules([load], name_command_file(load.record.file))
    for save in trace.saves:
        yield from run_rules([save], name_command_file(save.record.file))
    yield from run_rules([trace.objects])
