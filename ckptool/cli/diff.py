"""`ckptool diff`."""

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
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.parsing import parse_shard
from ckptool.locations import Location
from ckptool.values.progress import get_byte_counter


@click.command("diff", cls=GroupedCommand)
@click.argument("path", type=CHECKPOINT_PATH)
@click.argument("new", type=CHECKPOINT_PATH, required=False)
@module_options
@base_option
@at_option
@into_option
@click.option("--explain", metavar="KEY", help="Show all details of one key.")
@click.option(
    "--values/--no-values",
    default=None,
    help="Compare values: the default for two checkpoints, not with a module.",
)
@click.option("--rtol", type=float, metavar="NUMBER",
              help="Two checkpoints: values may differ by ATOL + RTOL * abs(old).")  # fmt: skip
@click.option(
    "--atol", type=float, metavar="NUMBER", help="The absolute tolerance; both default to 0."
)
@click.option(
    "--jobs", type=int, metavar="N", help="Number of threads or processes that compare values."
)
@click.option("--dask", metavar="ADDRESS", help="Compare values on this Dask cluster.")
@click.option("--shard", metavar="I/N",
              help="Compare only part I of N of the values; see `ckptool merge`.")  # fmt: skip
@input_options
@limit_options
@report_options
def command(
    ctx: click.Context,
    path: Location,
    new: Location | None,
    *,
    shard: str | None,
    out: ReportOutput,
    **options: Any,
) -> None:
    """Compare a checkpoint with the module that should load it, or with another checkpoint.

    \b
    ckptool diff model.pth -m package.module:Name -k d_in=3
    ckptool diff model.pth            the module named in pyproject.toml or ckptool.toml
    ckptool diff old.pth new.safetensors

    Exit codes: 0 the module loads the checkpoint strictly, or the two checkpoints are equal; 1 it
    does not, they differ, or a problem is at or above --fail-on; 2 could not check. With
    --fail-on never it is not 1.
    """  # noqa: D301 (click reads a real backspace)
    report = api.diff(
        path,
        new,
        shard=parse_shard(shard),
        progress=get_byte_counter(),
        pictures=out.draws_pictures,
        config=ctx.obj["config"],
        **options,
    )
    out.finish(report)
