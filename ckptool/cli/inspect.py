"""`ckptool inspect`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import limit_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput, end_command
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.locations import Location
from ckptool.reports.inspect import SORTS


@click.command("inspect", cls=GroupedCommand)
@click.argument("paths", nargs=-1, required=True, type=CHECKPOINT_PATH, metavar="PATH...")
@click.option("--values", is_flag=True, help="Check values too (rules CK4xx); reads all data.")
@click.option("--filter", "key_filter", metavar="PATTERN", default="",
              help="Only tensors whose key matches or contains this: '*.bias', norm.")  # fmt: skip
@click.option("--depth", type=click.IntRange(1), metavar="N", help="Show N levels of the tree.")
@click.option("--sort", type=click.Choice(SORTS), help="Order.  [default: as in the file]")
@click.option("--key", metavar="KEY", default="",
              help="Show the values of KEY as torch prints them, and a picture.")  # fmt: skip
@limit_options
@report_options
def command(
    ctx: click.Context,  # noqa: ARG001
    paths: tuple[Location, ...],
    *,
    key_filter: str,
    depth: int | None,
    sort: str | None,
    out: ReportOutput,
    **options: Any,
) -> None:
    """Describe checkpoints: tensors, dtypes, bytes, ties, devices, unsafe globals, metadata.

    Nothing in the files is loaded, imported or executed, and torch is not needed but for --values.
    """
    with pause_gc():  # the descriptions of 100,000 tensors hold no cycles
        report = api.inspect(
            paths,
            filter=key_filter,
            depth=depth or 0,
            sort=sort or "",
            pictures=out.draws_pictures,
            **options,
        )
        if report.checkpoints or out.formats - {"table", "markdown", "html"}:
            out.write_report(report)
    end_command(report.exit_code, report.errors)
