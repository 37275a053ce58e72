"""`ckptool merge`."""

from pathlib import Path

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.policy import Policy


@click.command("merge", cls=GroupedCommand)
@click.argument(
    "parts", metavar="PART...", type=click.Path(path_type=Path), nargs=-1, required=True
)
@click.option("--explain", metavar="KEY", help="Show all details of one key.")
@report_options
def command(
    ctx: click.Context,  # noqa: ARG001
    parts: tuple[Path, ...],
    *,
    explain: str | None,
    out: ReportOutput,
    policy: Policy,
) -> None:
    """Merge the partial diffs of `ckptool diff OLD NEW --shard I/N`.

    \b
    ckptool diff old.pth new.pth --shard 1/2 --format json -o part-1.json
    ckptool diff old.pth new.pth --shard 2/2 --format json -o part-2.json
    ckptool merge part-1.json part-2.json
    """  # noqa: D301 (click reads a real backspace)
    report = api.merge(parts, explain=explain, policy=policy)
    out.finish(report)
