"""`ckptool history`."""

from pathlib import Path

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.revisions.chain_options import chain_option, model_option
from ckptool.policy import Policy


@click.command("history", cls=GroupedCommand)
@chain_option
@model_option
@report_options
def command(
    ctx: click.Context,
    *,
    chain: Path | None,
    module: str | None,
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
) -> None:
    r"""Show the revisions of a project's chain of migrations, the head first.

    \b
    ckptool history
    """
    report = api.history(module=module, chain=chain, config=ctx.obj["config"])
    out.write_report(report)
    ctx.exit(report.exit_code)
