"""Options that the commands of a chain of migrations share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ckptool.cli.options.module import at_option, limit_options, module_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import target_options

Function = Callable[..., Any]

chain_option = click.option(
    "--chain",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the revisions.  [default: ckpt_migrations next to the configuration]",
)
model_option = click.option(
    "-m", "--module", metavar="MODULE:NAME", help="Its chain, if the project has several."
)


def name_module_in_full(function: Function) -> Function:
    """Leave the module to --module alone: -m is the message there, as in Alembic and in git."""
    for parameter in getattr(function, "__click_params__", ()):
        if parameter.name == "module":
            parameter.opts = ["--module"]
    return function


def add_move_options(function: Function) -> Function:
    """Add the argument and the options of `upgrade` and `downgrade`, without --to."""
    options = (
        click.argument("source", type=CHECKPOINT_PATH),
        chain_option,
        click.option(
            "--from",
            "from_",
            metavar="REV",
            help="Revision that the file is at.  [default: by its stamp, or recognised]",
        ),
        at_option,
        click.option(
            "--drop-extra", is_flag=True, help="Write the state_dict alone, not what is around it."
        ),
        click.option("--force", is_flag=True, help="Replace an existing file."),
        click.option("--dry-run", is_flag=True, help="Write nothing; show the steps."),
        module_options,
        limit_options,
        target_options("OUT", "File to write."),
    )
    for option in reversed(options):
        function = option(function)
    return function
