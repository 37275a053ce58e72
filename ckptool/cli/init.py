"""`ckptool init`."""

from pathlib import Path

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.param_types import INPUT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.policy import Policy

_DEFAULT_TIMEOUT = 120


@click.command("init", cls=GroupedCommand)
@click.argument("folder", required=False, type=INPUT_PATH)
@click.option("--dry-run", is_flag=True, help="Write nothing; show what would be written.")
@click.option(
    "--in-process",
    is_flag=True,
    help="Build modules in this process instead of a child process, for use with a debugger.",
)
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    default=_DEFAULT_TIMEOUT,
    show_default=True,
    help="Time limit for building one module.",
)
@report_options
def command(
    ctx: click.Context,  # noqa: ARG001
    folder: Path | None,
    *,
    dry_run: bool,
    in_process: bool,  # noqa: ARG001 - this and the next are read by the report options
    timeout: float,  # noqa: ARG001
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
) -> None:
    r"""Write the configuration: the module of each checkpoint in a project.

    Classes, factories and instances are found in the source, without running it. Those in files
    that only contain definitions are built, to see which one each checkpoint fits. The result is
    checked before it is written.

    \b
    ckptool init                 adds [[tool.ckptool.models]] to pyproject.toml
    ckptool init --dry-run       shows it
    """
    report = api.init(folder, dry_run=dry_run)
    out.finish(report)
