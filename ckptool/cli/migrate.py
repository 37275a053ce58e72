"""`ckptool migrate`."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import (
    at_option,
    base_option,
    input_options,
    into_option,
    limit_options,
    module_options,
)
from ckptool.cli.options.param_types import CHECKPOINT_PATH, INPUT_FILE, INPUT_FOLDER, OUTPUT_PATH
from ckptool.cli.options.report import target_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.output_targets import find_format
from ckptool.cli.outputs.progress import report_interrupt
from ckptool.cli.parsing import parse_injection, parse_rename, parse_shard_size, reject_duplicates
from ckptool.commands.sources.batch import explain_missing_folder, is_batch
from ckptool.errors import PlanError, UsageError
from ckptool.locations import Location
from ckptool.phrases import make_printable
from ckptool.reports.migrate import MigrateManyReport, MigrateReport
from ckptool.values.progress import get_byte_counter


def _is_old_target(ctx: click.Context, path: Path) -> bool:
    return not (ctx.params.get("dry_run") or find_format(path))


@click.command("migrate", cls=GroupedCommand)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=CHECKPOINT_PATH)
@module_options
@at_option
@into_option
@base_option
@click.option("--to", type=click.Choice(["safetensors", "pth"]), help="The container.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--inject", "injected", multiple=True, metavar="KEY=SOURCE",
              help="Source of the value of KEY (or of all missing keys that match "
                   "'*.running_mean'): attribute, constructor, file:PATH#KEY, npz:PATH#KEY, "
                   "literal:VALUE, seed:N or zeros.")  # fmt: skip
@click.option("--drop", multiple=True, metavar="KEY", help="Drop KEY.")
@click.option("--rename", "renamed", multiple=True, metavar="OLD=NEW",
              help="The module's NEW is OLD in the file; `*` is one segment, at the end all that "
              "follow: 'backbone.*=encoder.*'.")  # fmt: skip
@click.option("--accept-renames", is_flag=True,
              help="Accept unproved renames if they are unambiguous.")  # fmt: skip
@click.option("--from", "from_", metavar="FILE", type=CHECKPOINT_PATH,
              help="Also take attributes from this pickled module.")  # fmt: skip
@click.option("--merge-adapter", metavar="BASE", type=INPUT_FOLDER,
              help="SRC is an adapter: merge it into this model; DST is a new folder.")  # fmt: skip
@click.option("--drop-extra", is_flag=True, help="Write only the state_dict.")
@click.option("--plan", metavar="FILE", type=INPUT_FILE, help="Apply this plan.")
@click.option("--save-plan", metavar="FILE", type=OUTPUT_PATH,
              help="Write the plan to this file, for editing.")  # fmt: skip
@click.option("--emit-hook", metavar="FILE.py", type=OUTPUT_PATH,
              help="Write the plan as a Python hook with which the module loads old files itself, "
              "and its test.")  # fmt: skip
@click.option("--reverse", is_flag=True, help="Apply the plan in reverse.")
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    help='Write shards of at most this size ("5GB") to the folder DST.',
)
@click.option("--no-links", is_flag=True, help="Copy unchanged shards instead of linking them.")
@click.option(
    "--no-provenance", is_flag=True, help="Do not record the plan and digests with the output."
)
@click.option("--force", is_flag=True, help="Replace an existing DST.")
@input_options
@click.option("--device", default="auto", show_default=True,
              help="Device to run on if inputs are given: auto, cuda, simulated, cpu.")  # fmt: skip
@click.option("--old-module", metavar="PACKAGE.MODULE:NAME",
              help="Module of SRC; its outputs for the inputs must match.")  # fmt: skip
@click.option(
    "--tolerance", type=float, help="Allowed difference; by default outputs must be bitwise equal."
)
@limit_options
@target_options("DST", "Output; its suffix is the format. A folder if several SRC.", _is_old_target)
def command(
    ctx: click.Context,
    sources: tuple[Location, ...],
    *,
    target: Path | None,
    injected: tuple[str, ...],
    renamed: tuple[str, ...],
    max_shard_size: str | None,
    no_links: bool,
    no_provenance: bool,
    out: ReportOutput,
    **options: Any,
) -> None:
    r"""Write a checkpoint that the new module loads strictly.

    \b
    ckptool migrate old.pth -o new.pth -m package.module:Name -k d_in=3
    ckptool migrate old.pth -o new.safetensors      convert, with the module that is configured
    ckptool migrate whole.pth -o new.safetensors --inject mask=attribute
    ckptool migrate runs/ -o migrated/ -m package.module:Name
    """
    if options["reverse"] and options["plan"] is None:
        raise UsageError("--reverse undoes a plan: name it with --plan FILE")
    makes_folder = max_shard_size is not None or options["merge_adapter"] is not None
    with report_interrupt(ctx):
        migrate = partial(
            _choose_function(sources, target, is_folder_result=makes_folder),
            inject=reject_duplicates("--inject", map(parse_injection, injected)),
            max_shard_size=parse_shard_size(max_shard_size),
            links=not no_links,
            provenance=not no_provenance,
            progress=get_byte_counter(),
            config=ctx.obj["config"],
            pictures=out.draws_pictures,
            **options,
        )
        renames = reject_duplicates("--rename", map(parse_rename, renamed))
        try:
            report = migrate(renames=renames)
        except PlanError as error:
            answers = _ask_renames(error)
            if options["save_plan"] is not None:  # it has the questions that are answered now
                options["save_plan"].unlink(missing_ok=True)
            report = migrate(renames={**renames, **answers})
    out.finish(report, getattr(report, "errors", ()))


def _choose_function(
    sources: tuple[Location, ...], target: Path | None, *, is_folder_result: bool
) -> Callable[..., MigrateReport | MigrateManyReport]:
    """Return `migrate` with its source and target, or `migrate_many` with several sources."""
    if not is_batch(sources, target, is_folder_result=is_folder_result):
        return partial(api.migrate, sources[0], target)
    if target is None:
        raise UsageError(explain_missing_folder(sources))
    return partial(api.migrate_many, sources, target)


def _ask_renames(error: PlanError) -> dict[str, str]:
    """Ask each open question on a terminal; return the renames that were answered with yes.

    Raises:
        PlanError: `error`, if nobody can be asked, or a question is no rename, or answered with no.
    """
    from ckptool.migration.plan.open_decisions import UndecidedError

    decisions = error.decisions if isinstance(error, UndecidedError) else ()
    groups = [decision.renames for decision in decisions if decision.renames is not None]
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    if not can_ask or not groups or len(groups) < len(decisions):
        raise error
    for group in groups:
        question = f"Is `{group.old_pattern}` `{group.new_pattern}` now? {group.evidence}"
        if not click.confirm(make_printable(question), err=True):
            raise error
    return {old: new for group in groups for old, new in group.pairs.items()}
