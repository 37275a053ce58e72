"""`ckptool gate`."""

from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import (
    at_option,
    base_option,
    input_options,
    limit_options,
    module_options,
)
from ckptool.cli.options.param_types import CHECKPOINT_PATH, INPUT_FILE, OUTPUT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.locations import Location


@click.command("gate", cls=GroupedCommand)
@click.argument("paths", nargs=-1, type=CHECKPOINT_PATH, metavar="[PATH]...")
@module_options
@base_option
@at_option
@click.option(
    "--against",
    metavar="LOCK|OLD|MODULE",
    help="Compare with a lock, an older checkpoint, or an older module.",
)
@click.option(
    "--fixtures",
    multiple=True,
    metavar="GLOB",
    help="Old checkpoints that must load into the module, directly or migrated.",
)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    type=INPUT_FILE,
    metavar="FILE",
    help="A migration plan released with the code, for --fixtures.",
)
@click.option(
    "--golden",
    multiple=True,
    type=INPUT_FILE,
    metavar="FILE",
    help="Recorded outputs that the module must reproduce.",
)
@click.option(
    "--policy",
    "policy_file",
    type=INPUT_FILE,
    metavar="FILE",
    help="Read the policy and the modules from this file.",
)
@click.option(
    "--baseline",
    type=OUTPUT_PATH,
    metavar="FILE",
    help="Known findings, which do not fail the gate.",
)
@click.option("--update-baseline", is_flag=True, help="Record the current findings as known.")
@click.option("--exit-zero", is_flag=True, help="Report only: exit 0 even if the gate fails.")
@click.option("--modules-only", is_flag=True,
              help="Check the configured modules and their locks, no checkpoints.")  # fmt: skip
@click.option(
    "--show-policy", is_flag=True, help="Print the effective policy and the source of each setting."
)
@click.option("--values/--no-values", default=True, help="Check values too, or the structure only.")
@input_options
@limit_options
@report_options
def command(
    ctx: click.Context,
    paths: tuple[Location, ...],
    *,
    baseline: Path | None,
    show_policy: bool,
    out: ReportOutput,
    **options: Any,
) -> None:
    r"""Pass or fail a release by the policy of pyproject.toml or ckptool.toml.

    \b
    ckptool gate                                  all that the configuration names
    ckptool gate model.pth 'runs/*.pth' release/  files, patterns and folders
    ckptool gate release --format github          annotations and a summary for GitHub
    ckptool gate model.pth --format sarif -o gate.sarif --format junit -o gate.xml
    ckptool gate model.pth --against ckpt.lock.json --fixtures 'old/*.pth' --golden g.safetensors
    ckptool gate -m package.module:Name --against ckpt.lock.json       no weights are needed
    ckptool gate --modules-only                   every configured module and its lock
    ckptool gate --show-policy
    """
    if show_policy:
        policy_options = replace(ctx.obj["options"], baseline=str(baseline) if baseline else None)
        out.write_report(
            api.effective_policy(paths, options=policy_options, config=ctx.obj["config"])
        )
        return
    report = api.gate(
        paths,
        baseline=baseline,
        config=ctx.obj["config"],
        pictures=out.draws_pictures,
        **options,
    )
    out.finish(report, report.errors)
