"""`ckptool digest`."""

from pathlib import Path

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import at_option, limit_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH, INPUT_FILE
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput, end_command
from ckptool.cli.outputs.notices import take_old_spelling
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.locations import Location
from ckptool.policy import Policy


@click.command("digest", cls=GroupedCommand)
@click.argument("paths", nargs=-1, required=True, type=CHECKPOINT_PATH, metavar="PATH...")
@at_option
@click.option(
    "--against",
    metavar="FILE",
    type=INPUT_FILE,
    help="Compare with a report that `digest --format json -o FILE` wrote.",
)
@click.option("--check", "old_spelling", type=INPUT_FILE, hidden=True)
@click.option(
    "--textconv", is_flag=True, help="One stable line for each tensor, for git diff; exits 0."
)
@limit_options
@report_options
def command(
    ctx: click.Context,
    paths: tuple[Location, ...],
    *,
    at: str | None,
    against: Location | None,
    old_spelling: Path | None,
    textconv: bool,
    limits: Limits,
    out: ReportOutput,
    policy: Policy,
) -> None:
    """Compute a digest of the content: the same in any format, key order or shards.

    \b
    ckptool digest model.pth
    ckptool digest model.pth --format json -o model.digest.json
    ckptool digest model.safetensors --against model.digest.json
    """  # noqa: D301 (click wants the character, not its name)
    against = take_old_spelling(against, old_spelling, old="--check", new="--against")
    if textconv:
        if against is not None or len(paths) != 1:
            raise UsageError("--textconv prints one PATH, without --against")
        if out.formats != {"table"}:
            raise UsageError("--textconv has a format of its own: leave --format out")
        out.write_text(api.textconv(paths[0], at=at, limits=limits))
        ctx.exit(0)
    report = api.digest(paths, at=at, against=against, policy=policy, limits=limits)
    if report.checkpoints or out.formats - {"table", "markdown"}:
        out.write_report(report)
    end_command(report.exit_code, report.errors)
