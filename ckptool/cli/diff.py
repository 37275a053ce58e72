"""`ckptool diff`."""

import click

from ckptool import api
from ckptool.cli.options import (
    CHECKPOINT,
    Output,
    input_options,
    limit_options,
    module_options,
    report_options,
)
from ckptool.formats.limits import Limits
from ckptool.locations import Location
from ckptool.policy import Policy


@click.command("diff")
@click.argument("path", type=CHECKPOINT)
@click.argument("new", type=CHECKPOINT, required=False)
@module_options
@click.option(
    "--at", metavar="PLACE", help='Place of the state in the file ("state_dict"; "." is the root).'
)
@click.option("--explain", metavar="KEY", help="Tell all that is known about one key.")
@click.option(
    "--values/--no-values",
    default=None,
    help="Look at the numbers: two checkpoints are compared so, a module's only if asked for.",
)
@input_options
@limit_options
@report_options
def command(
    ctx: click.Context,
    path: Location,
    new: Location | None,
    *,
    module: str | None,
    kwargs: dict[str, object] | None,
    at: str | None,
    explain: str | None,
    values: bool | None,
    inputs: tuple[str, ...] | None,
    limits: Limits,
    out: Output,
    policy: Policy,
) -> None:
    r"""Compare a checkpoint with the module that should load it, or with another checkpoint.

    \b
    ckptool diff model.pth -m package.module:Name -k d_in=3
    ckptool diff model.pth            the module named in pyproject.toml or ckptool.toml
    ckptool diff old.pth new.safetensors
    """
    report = api.diff(
        path,
        new,
        module=module,
        kwargs=kwargs,
        at=at,
        explain=explain,
        values=values,
        inputs=inputs,
        policy=policy,
        limits=limits,
    )
    out.emit(report)
    ctx.exit(report.exit_code)
