"""GateReport, PolicyReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import Style
from ckptool.render.blocks import Block, Lines, Verdict, grid
from ckptool.report import GateReport, PolicyReport


def release(report: GateReport, style: Style) -> Iterator[Block]:
    # With --exit-zero the exit code is 0 even if the gate failed.
    failed = any(f.fails for f in report.findings) or not all(c.passed for c in report.checkpoints)
    yield Verdict(report.verdict, failed)
    if style.verbosity < 0:
        return
    source = f"policy: {report.policy}" if report.policy else "policy: the defaults"
    yield Lines((source, *report.notes))
    rows = [(one.path, one.module or "none", one.verdict) for one in report.checkpoints]
    yield grid("Checkpoints", ("checkpoint", "module", "verdict"), rows, style)
    levels = [
        (one.path, level.level, level.status, level.device, level.reason)
        for one in report.checkpoints
        for level in one.levels
    ]
    if levels:
        headers = ("checkpoint", "level", "status", "ran on", "why")
        yield grid("Verified, since the policy asks for it", headers, levels, style)
    held = [(p.name, p.what, p.result) for one in report.checkpoints for p in one.promises]
    if held:
        yield grid("Held to", ("promise", "kind", "result"), list(dict.fromkeys(held)), style)


def policy(report: PolicyReport, style: Style) -> Iterator[Block]:
    for path in dict.fromkeys(one.path for one in report.settings):
        rows = [(s.name, s.value, s.origin) for s in report.settings if s.path == path]
        title = f"Policy for {path}" if path else "Policy"
        yield grid(title, ("setting", "value", "from"), rows, style)
