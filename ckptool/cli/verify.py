"""`ckptool verify`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import (
    at_option,
    base_option,
    input_options,
    limit_options,
    module_options,
)
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.notices import take_old_spelling
from ckptool.locations import Location
from ckptool.policy import ExitCode


@click.command("verify", cls=GroupedCommand)
@click.argument("path", type=CHECKPOINT_PATH)
@module_options
@base_option
@at_option
@click.option(
    "--device",
    metavar="DEVICE",
    default="auto",
    show_default=True,
    help="auto, cuda, cuda:1, simulated or cpu.",
)
@click.option(
    "--old",
    metavar="OLD",
    type=CHECKPOINT_PATH,
    help="Previous checkpoint; its outputs must match.",
)
@click.option(
    "--old-module", metavar="PACKAGE.MODULE:NAME", help="Module of the previous checkpoint."
)
@click.option("--against", "old_spelling", type=CHECKPOINT_PATH, hidden=True)
@input_options
@click.option(
    "--tolerance", type=float, help="Allowed difference of outputs, absolute and relative."
)
@limit_options
@report_options
def command(
    ctx: click.Context,
    path: Location,
    *,
    old: Location | None,
    old_spelling: Location | None,
    out: ReportOutput,
    **options: Any,
) -> None:
    r"""Load a checkpoint, run its module on a real or simulated GPU, and compare outputs.

    \b
    ckptool verify model.pth -m package.module:Name --input "float32[2,6,3]"
    ckptool verify new.pth --old old.pth --old-module package.old:Name
    ckptool verify model.pth --device cuda:1 --inputs package.module:batch
    """
    report = api.verify(
        path,
        old=take_old_spelling(old, old_spelling, old="--against", new="--old"),
        config=ctx.obj["config"],
        pictures=out.draws_pictures,
        **options,
    )
    out.write_report(report)
    if report.exit_code == ExitCode.COULD_NOT_CHECK and report.unrun_reason:
        click.echo(f"ckptool: {path}: nothing was run: {report.unrun_reason}", err=True)
    ctx.exit(report.exit_code)
