"""`ckptool current`."""

from pathlib import Path

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import at_option, limit_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.revisions.chain_options import chain_option, model_option
from ckptool.formats.limits import Limits
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
    chain: Path | None,
    module: str | None,
    at: str | None,
    limits: Limits,
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
) -> None:
    r"""Show the revision that each checkpoint is at, and how that is known.

    \b
    ckptool current model.pth
    ckptool current runs/*.safetensors
    """
    report = api.current(
        paths, at=at, module=module, chain=chain, limits=limits, config=ctx.obj["config"]
    )
    out.write_report(report)
    ctx.exit(report.exit_code)
