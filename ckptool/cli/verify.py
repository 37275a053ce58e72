"""`ckptool verify`."""

import click

from ckptool import api
from ckptool.cli.options import (
    CHECKPOINT_PATH,
    base_option,
    input_options,
    limit_options,
    module_options,
    report_options,
)
from ckptool.cli.output import ReportOutput
from ckptool.formats.limits import Limits
from ckptool.locations import Location
from ckptool.policy import Policy


@click.command("verify")
@click.argument("path", type=CHECKPOINT_PATH)
@module_options
@base_option
@click.option(
    "--at",
    metavar="PLACE",
    help='Key path of the state_dict inside the file ("state_dict"; "." is the root).',
)
@click.option(
    "--device",
    metavar="DEVICE",
    default="auto",
    show_default=True,
    help="auto, cuda, cuda:1, simulated or cpu.",
)
@click.option(
    "--against",
    metavar="OLD",
    type=CHECKPOINT_PATH,
    help="Previous checkpoint; its outputs must match.",
)
@click.option(
    "--old-module", metavar="PACKAGE.MODULE:NAME", help="Module of the previous checkpoint."
)
@input_options
@click.option(
    "--tolerance", type=float, help="Allowed difference of outputs, absolute and relative."
)
@limit_options
@report_options
def command(  # noqa: PLR0913
    ctx: click.Context,
    path: Location,
    *,
    module: str | None,
    kwargs: dict[str, object] | None,
    loader: str | None,
    base: Location | None,
    at: str | None,
    device: str,
    against: Location | None,
    old_module: str | None,
    inputs: tuple[str, ...] | None,
    tolerance: float | None,
    limits: Limits,
    out: ReportOutput,
    policy: Policy,
) -> None:
    r"""Load a checkpoint, run its module on a real or simulated GPU, and compare outputs.

    \b
    ckptool verify model.pth -m package.module:Name --input "float32[2,6,3]"
    ckptool verify new.pth --against old.pth --old-module package.old:Name
    ckptool verify model.pth --device cuda:1 --inputs package.module:batch
    """
    report = api.verify(
        path,
        module=module,
        kwargs=kwargs,
        loader=loader,
        base=base,
        at=at,
        device=device,
        against=against,
        old_module=old_module,
        inputs=inputs,
        tolerance=tolerance,
        policy=policy,
        config=ctx.obj["config"],
        limits=limits,
        pictures=out.draws_pictures,
    )
    out.write_report(report)
    ctx.exit(report.exit_code)
