"""`ckptool revision`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import input_options, limit_options, module_options
from ckptool.cli.options.param_types import INPUT_FILE, INPUT_PATH, OUTPUT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.parsing import parse_injection, parse_rename, reject_duplicates
from ckptool.cli.revisions.chain_options import chain_option, name_module_in_full
from ckptool.policy import Policy


@click.command("revision", cls=GroupedCommand)
@click.option("-m", "--message", metavar="TEXT", help="What changed, in a few words.")
@chain_option
@name_module_in_full
@module_options
@click.option("--rename", "renamed", metavar="OLD=NEW", multiple=True,
              help="A key or pattern before, and now; repeatable.")  # fmt: skip
@click.option("--inject", "injected", metavar="KEY=SOURCE", multiple=True,
              help="Where the value of a new key is from, as for migrate; repeatable.")  # fmt: skip
@click.option("--drop", metavar="KEY", multiple=True, help="Leave out this key; repeatable.")
@click.option("--accept-renames", is_flag=True, help="Take renames that nothing proves.")
@click.option("--plan", type=INPUT_FILE, metavar="FILE",
              help="The steps, as a plan file of migrate.")  # fmt: skip
@click.option("--save-plan", type=OUTPUT_PATH, metavar="FILE",
              help="File for the steps so far, if questions are open.")  # fmt: skip
@click.option("--python", is_flag=True, help="Draft a Python function to fill in, not steps.")
@click.option("--fixture", type=INPUT_PATH, metavar="FILE",
              help="A small checkpoint to keep as the old file of its revision.")  # fmt: skip
@click.option("--merge", is_flag=True, help="Put one of two heads after the other.")
@click.option("--dry-run", is_flag=True, help="Write nothing; show the steps.")
@input_options
@limit_options
@report_options
def command(
    ctx: click.Context,
    *,
    renamed: tuple[str, ...],
    injected: tuple[str, ...],
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
    **options: Any,
) -> None:
    r"""Draft a migration from what changed since the last revision, or since the lock.

    \b
    ckptool revision -m "the first one"
    ckptool revision -m "mask is a buffer"
    ckptool revision -m "another layout" --python
    ckptool revision --fixture old.pth
    """
    report = api.revision(
        renames=reject_duplicates("--rename", map(parse_rename, renamed)),
        inject=reject_duplicates("--inject", map(parse_injection, injected)),
        run_python=not ctx.params["no_config"],
        config=ctx.obj["config"],
        **options,
    )
    out.finish(report)
