"""`ckptool audit`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import input_options, module_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.locations import Location


@click.command("audit", cls=GroupedCommand)
@click.argument("folder", type=CHECKPOINT_PATH, required=False)
@module_options
@input_options
@report_options
def command(
    ctx: click.Context,
    folder: Location | None,
    *,
    out: ReportOutput,
    **options: Any,
) -> None:
    r"""Report state of a module that is not in its state_dict.

    \b
    ckptool audit -m package.module:Name -k d_in=3
    ckptool audit                                the modules of pyproject.toml or ckptool.toml
    ckptool audit FOLDER                         the module of a framework's folder
    ckptool audit -m package.module:Name --input "float32[2,3]"      run it as well
    """
    report = api.audit(
        folder=folder, config=ctx.obj["config"], pictures=out.draws_pictures, **options
    )
    out.finish(report)
