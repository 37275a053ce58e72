"""Run a command, and report what its loads and saves did."""

from collections.abc import Iterable, Iterator, Sequence

from ckptool.errors import UsageError
from ckptool.model import Skipped
from ckptool.policy import ExitCode, Policy, judge
from ckptool.reports.run import RunReport, build_run_report
from ckptool.rules import Finding, run_rules
from ckptool.rules.fixes.run_fixes import name_command_file
from ckptool.rules.registry import sort_findings
from ckptool.tracing.merge import RunTrace, merge_records
from ckptool.tracing.records import AnyRecord
from ckptool.tracing.traced_command import run_traced

_NO_TORCH = Skipped(
    "the command",
    "none of its processes imported torch, or they run Python with -I, -E or -S, which ignores "
    "PYTHONPATH",
)


def run(
    words: Sequence[str], *, policy: Policy | None = None, fails_on_findings: bool = False
) -> RunReport:
    """Run a command unmodified, and report what its loads and saves did.

    Args:
        words: the command: ["python", "train.py"].
        policy: reported findings, and the level from which they fail.
        fails_on_findings: whether findings that fail make the exit code 1 where the command's is 0.

    Raises:
        UsageError: there is no command, or it cannot be started.
    """
    if not words:
        raise UsageError("no command was given: ckptool run -- python train.py")
    traced_run = run_traced(words)
    return judge_records(
        traced_run.records,
        policy or Policy(),
        command_exit_code=traced_run.exit_code,
        fails_on_findings=fails_on_findings,
    )


def judge_records(
    records: Iterable[AnyRecord],
    policy: Policy,
    *,
    command_exit_code: int | None = None,
    fails_on_findings: bool = True,
) -> RunReport:
    """Judge what the processes of a command recorded.

    Args:
        records: each process's in its order.
        policy: reported findings, and the level from which they fail.
        command_exit_code: that of the command; None if there is no command, as in a test session.
        fails_on_findings: whether findings that fail make the exit code 1 where the command's is 0.
    """
    trace = merge_records(records)
    verdict = judge(sort_findings(_iter_findings(trace)), policy)
    has_failed = fails_on_findings and verdict.exit_code is ExitCode.FAILED
    return build_run_report(
        trace,
        verdict,
        command_exit_code,
        exit_code=command_exit_code or int(has_failed),
        skipped=() if trace.processes or command_exit_code is None else (_NO_TORCH,),
    )


def _iter_findings(trace: RunTrace) -> Iterator[Finding]:
    for load in trace.loads:
        yield from run_rules([load], name_command_file(load.record.file))
    for save in trace.saves:
        yield from run_rules([save], name_command_file(save.record.file))
    yield from run_rules([trace.objects])
