"""`ckptool audit`."""

import click

from ckptool import api
from ckptool.cli.options import input_options, module_options, report_options
from ckptool.cli.output import ReportOutput
from ckptool.policy import Policy


@click.command("audit")
@module_options
@input_options
@report_options
def command(
    ctx: click.Context,
    *,
    module: str | None,
    kwargs: dict[str, object] | None,
    inputs: tuple[str, ...] | None,
    out: ReportOutput,
    policy: Policy,
) -> None:
    r"""Report everything a module holds that a state_dict does not.

    \b
    ckptool audit -m package.module:Name -k d_in=3
    ckptool audit -m package.module:Name --input "float32[2,3]"      run it as well
    """
    report = api.audit(
        module, kwargs=kwargs, inputs=inputs, policy=policy, pictures=out.draws_pictures
    )
    out.write_report(report)
    ctx.exit(report.exit_code)
