"""`ckptool current`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import at_option, limit_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.revisions.chain_options import chain_option, model_option
from ckptool.locations import Location
from ckptool.policy import Policy


@click.command("current", cls=GroupedCommand)
@click.argument("paths", metavar="PATH...", type=CHECKPOINT_PATH, nargs=-1, required=True)
@chain_option
@model_option
@at_option
@limit_options
@report_options
def command(
    ctx: click.Context,
    paths: tuple[Location, ...],
    *,
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
    **options: Any,
) -> None:
    r"""Show the revision that each checkpoint is at, and how that is known.

    \b
    ckptool current model.pth
    ckptool current runs/*.safetensors
    """
    out.finish(api.current(paths, config=ctx.obj["config"], **options))
