"""`ckptool check`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import limit_options, module_options
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.revisions.chain_options import chain_option


@click.command("check", cls=GroupedCommand)
@chain_option
@module_options
@limit_options
@report_options
def command(ctx: click.Context, *, out: ReportOutput, **options: Any) -> None:
    r"""Check that every old file still arrives at the head of the chain of migrations.

    Exits 1 if the state of the module changed and no revision covers that, or if the fixture of a
    revision does not arrive, does not load, or computes something else.

    \b
    ckptool check
    """
    run_python = not ctx.params["no_config"]
    out.finish(api.check(run_python=run_python, config=ctx.obj["config"], **options))
