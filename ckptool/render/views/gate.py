"""GateReport, PolicyReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import RenderOptions
from ckptool.render.blocks import KIND, VALUE, WHY, Block, LinesBlock, VerdictBlock, build_table
from ckptool.reports.gate import GateReport, PolicyReport


def build_blocks(report: GateReport | PolicyReport, options: RenderOptions) -> Iterator[Block]:
    if isinstance(report, PolicyReport):
        return _build_policy_blocks(report, options)
    return _build_gate_blocks(report, options)


def _build_gate_blocks(report: GateReport, options: RenderOptions) -> Iterator[Block]:
    # With --exit-zero the exit code is 0 even if the gate failed.
    has_failed = any(f.fails for f in report.findings) or not all(
        c.passed for c in report.checkpoints
    )
    yield VerdictBlock(report.verdict, has_failed)
    if options.verbosity < 0:
        return
    policy_text = f"policy: {report.policy}" if report.policy else "policy: the defaults"
    yield LinesBlock((policy_text, *report.notes))
    rows = [
        (checkpoint.path, checkpoint.module or "none", checkpoint.verdict)
        for checkpoint in report.checkpoints
    ]
    yield build_table("Checkpoints", ("checkpoint", "module", "verdict"), rows, options)
    levels = [
        (checkpoint.path, level.level, level.status, level.device, level.reason)
        for checkpoint in report.checkpoints
        for level in checkpoint.levels
    ]
    if levels:
        headers = ("checkpoint", "level", "status", "ran on", WHY)
        yield build_table("Verification required by the policy", headers, levels, options)
    promises = [
        (promise.name, promise.what, promise.result)
        for checkpoint in report.checkpoints
        for promise in checkpoint.promises
    ]
    if promises:
        yield build_table(
            "Held to", ("promise", KIND, "result"), list(dict.fromkeys(promises)), options
        )


def _build_policy_blocks(report: PolicyReport, options: RenderOptions) -> Iterator[Block]:
    for path in dict.fromkeys(setting.path for setting in report.settings):
        rows = [(s.name, s.value, s.origin) for s in report.settings if s.path == path]
        title = f"Policy for {path}" if path else "Policy"
        yield build_table(title, ("setting", VALUE, "from"), rows, options)
