"""`ckptool lock`."""

from pathlib import Path

import click

from ckptool import api
from ckptool.cli.options import (
    CHECKPOINT_PATH,
    OUTPUT_PATH,
    input_options,
    limit_options,
    module_options,
    screen_options,
)
from ckptool.cli.output import ReportOutput
from ckptool.cli.parsing import reject_duplicates
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.locations import Location
from ckptool.policy import Policy


@click.command("lock")
@click.argument("path", required=False, type=CHECKPOINT_PATH)
@click.option("-o", "--output", "target", metavar="LOCK", type=OUTPUT_PATH,
              help="The lock's file.  [default: ckpt.lock.json]")  # fmt: skip
@module_options
@click.option(
    "--at", metavar="PLACE", help='Key path of the state_dict inside the file ("state_dict").'
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the lock is out of date.")
@click.option("--golden", metavar="FILE", type=OUTPUT_PATH,
              help="Record the module's outputs for the inputs, with PATH loaded.")  # fmt: skip
@input_options
@click.option("--tolerance", "tolerances", multiple=True, metavar="DEVICE=NUMBER",
              help="With --golden: tolerance of a later comparison, cpu=1e-5 or cuda=1e-3. "
              " [default: by dtype]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace any existing file.")
@limit_options
@screen_options
def command(  # noqa: PLR0913
    ctx: click.Context,
    path: Location | None,
    target: Path | None,
    *,
    module: str | None,
    kwargs: dict[str, object] | None,
    loader: str | None,
    at: str | None,
    check: bool,
    golden: Path | None,
    inputs: tuple[str, ...] | None,
    tolerances: tuple[str, ...],
    force: bool,
    limits: Limits,
    out: ReportOutput,
    policy: Policy,
) -> None:
    r"""Write down what a module or a checkpoint promises: `gate --against` holds releases to it.

    \b
    ckptool lock -m package.module:Name -o ckpt.lock.json
    ckptool lock                                             the modules of the configuration
    ckptool lock -m package.module:Name --check              in CI: is the lock fresh?
    ckptool lock model.pth -o model.lock.json                what a file alone can tell
    ckptool lock model.pth -m package.module:Name --golden golden.safetensors
    """
    report = api.lock(
        path,
        module=module,
        kwargs=kwargs,
        loader=loader,
        at=at,
        output=target,
        check=check,
        golden=golden,
        inputs=inputs,
        tolerances=reject_duplicates("--tolerance", map(_parse_tolerance, tolerances)),
        force=force,
        policy=policy,
        config=ctx.obj["config"],
        limits=limits,
    )
    out.write_report(report)
    ctx.exit(report.exit_code)


def _parse_tolerance(text: str) -> tuple[str, float]:
    device, _, number = text.partition("=")
    try:
        tolerance = float(number)
    except ValueError:
        tolerance = -1.0
    if not tolerance >= 0:
        raise UsageError(f"--tolerance {text}: expected DEVICE=NUMBER, for example cpu=1e-5")
    return device, tolerance
