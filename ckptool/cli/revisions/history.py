"""`ckptool history`."""

from typing import Any

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
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
    **options: Any,
) -> None:
    r"""Show the revisions of a project's chain of migrations, the head first.

    \b
    ckptool history
    """
    out.finish(api.history(config=ctx.obj["config"], **options))
