"""`ckptool upgrade`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.progress import report_interrupt
from ckptool.cli.revisions.chain_options import add_move_options
from ckptool.locations import Location
from ckptool.policy import Policy
from ckptool.values.progress import get_byte_counter


@click.command("upgrade", cls=GroupedCommand)
@click.option("--to", metavar="REV", default="head", show_default=True,
              help="An identifier, the name or the number of a file, or head.")  # fmt: skip
@add_move_options
def command(
    ctx: click.Context,
    source: Location,
    *,
    to: str,
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
    **options: Any,
) -> None:
    r"""Write a checkpoint at a later revision of the project's chain of migrations.

    \b
    ckptool upgrade old.pth -o new.pth
    ckptool upgrade old.pth -o new.pth --to 0003
    ckptool upgrade old.pth --dry-run
    """
    run_move(ctx, api.upgrade, source, to, out, options)


def run_move(
    ctx: click.Context,
    function: Any,
    source: Location,
    to: str,
    out: ReportOutput,
    options: dict[str, Any],
) -> None:
    """Upgrade or downgrade, and print the report."""
    target = options.pop("target")
    with report_interrupt(ctx):
        report = function(
            source,
            target,
            to=to,
            run_python=not ctx.params["no_config"],
            progress=get_byte_counter(),
            config=ctx.obj["config"],
            **options,
        )
    out.finish(report)
