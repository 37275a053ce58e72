"""`ckptool fix`."""

from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import input_options, module_options
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput


@click.command("fix", cls=GroupedCommand)
@module_options
@input_options
@click.option("--write", is_flag=True, help="Write the edits, if all of them are proved.")
@click.option("--style", type=click.Choice(["register_buffer", "nn.Buffer"]),
              help="How buffers are registered.  [default: as the project does]")  # fmt: skip
@click.option("--parameter", "parameters", multiple=True, metavar="NAME",
              help="Make this tensor an nn.Parameter, which is trained; repeatable.")  # fmt: skip
@click.option("--keep-old-files", is_flag=True,
              help="Add a hook with which old checkpoints load, and its test.")  # fmt: skip
@click.option("--allow-unproved", is_flag=True,
              help="Write although something could not be checked.")  # fmt: skip
@report_options
def command(ctx: click.Context, *, out: ReportOutput, **options: Any) -> None:
    r"""Register the state that audit finds, in the source of the module.

    Without --write it shows the diff and changes nothing.

    \b
    ckptool fix -m package.module:Name -k d_in=3 --input "float32[2,3]"
    ckptool fix                                  the modules of pyproject.toml or ckptool.toml
    ckptool fix --write --keep-old-files         old checkpoints load as before
    ckptool fix --select CK103 -m package.module:Name
    """
    out.finish(api.fix(config=ctx.obj["config"], **options))
