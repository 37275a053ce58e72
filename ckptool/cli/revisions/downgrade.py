"""`ckptool downgrade`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.output import ReportOutput
from ckptool.cli.revisions.chain_options import add_move_options
from ckptool.cli.revisions.upgrade import run_move
from ckptool.locations import Location
from ckptool.policy import Policy


@click.command("downgrade", cls=GroupedCommand)
@click.option("--to", metavar="REV", required=True,
              help="An identifier, the name or the number of a file, or base.")  # fmt: skip
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
    r"""Write a checkpoint at an earlier revision, if each step between them can be undone.

    \b
    ckptool downgrade new.pth -o old.pth --to 0002
    """
    run_move(ctx, api.downgrade, source, to, out, options)
