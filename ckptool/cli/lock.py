"""`ckptool lock`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import (
    at_option,
    base_option,
    input_options,
    limit_options,
    module_options,
)
from ckptool.cli.options.param_types import CHECKPOINT_PATH, OUTPUT_PATH
from ckptool.cli.options.report import target_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.notices import announce_old_spelling
from ckptool.cli.parsing import reject_duplicates
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.errors import UsageError
from ckptool.locations import Location

_DEVICES: Final = ("cpu", "cuda")
"""Devices that outputs are recorded for."""
_OPTIONS_OF_ONE_LOCK: Final = {
    "module": "-m",
    "kwargs": "-k",
    "loader": "--loader",
    "at": "--at",
    "base": "--base",
    "golden": "--golden",
    "inputs": "--input",
    "force": "--force",
}
"""Parameter -> option that --all has no use for."""


def _is_old_target(ctx: click.Context, path: Path) -> bool:  # noqa: ARG001
    return path.name.endswith(".lock.json")


@click.command("lock", cls=GroupedCommand)
@click.argument("path", required=False, type=CHECKPOINT_PATH)
@module_options
@at_option
@base_option
@click.option("--all", "takes_all", is_flag=True,
              help="Every lock in the configuration (`against` in [[models]]).")  # fmt: skip
@click.option("--update", is_flag=True,
              help="Accept the changes: write only locks that already exist.")  # fmt: skip
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the lock is out of date.")
@click.option("--golden", metavar="FILE", type=OUTPUT_PATH,
              help="Record the module's outputs for the inputs, with PATH loaded.")  # fmt: skip
@input_options
@click.option("--tolerance", "tolerance_texts", multiple=True, metavar="NUMBER",
              help="With --golden: absolute and relative tolerance of a later comparison. "
              " [default: by dtype]")  # fmt: skip
@click.option("--device-tolerance", "device_tolerances", multiple=True, metavar="DEVICE=NUMBER",
              help="The same for one device: cpu=1e-5 or cuda=1e-3.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace any existing file.")
@limit_options
@target_options("LOCK", "The lock's file.  [default: ckpt.lock.json]", _is_old_target)
def command(
    ctx: click.Context,
    path: Location | None,
    *,
    target: Path | None,
    takes_all: bool,
    tolerance_texts: tuple[str, ...],
    device_tolerances: tuple[str, ...],
    out: ReportOutput,
    **options: Any,
) -> None:
    r"""Record the state contract of a module or a checkpoint, for `ckptool gate --against`.

    \b
    ckptool lock -m package.module:Name -o ckpt.lock.json
    ckptool lock                                             the modules of the configuration
    ckptool lock --all                                       each lock of the configuration
    ckptool lock --all --check                               in CI: fails if one is out of date
    ckptool lock --update -o ckpt.lock.json                  accept the changes
    ckptool lock model.pth -o model.lock.json                from a file alone
    ckptool lock model.pth -m package.module:Name --golden golden.safetensors
    """
    config = ctx.obj["config"]
    if takes_all:
        unused = {"PATH": bool(path), "-o": bool(target)}
        unused |= {option: bool(options[name]) for name, option in _OPTIONS_OF_ONE_LOCK.items()}
        reject_unused_options(unused, "is for one lock, and --all takes those that are configured")
        choices = {name: options[name] for name in ("check", "update", "policy")}
        out.finish(api.lock_all(config=config, **choices))
    report = api.lock(
        path,
        output=target,
        tolerances=_parse_tolerances(tolerance_texts, device_tolerances),
        config=config,
        **options,
    )
    out.finish(report)


def _parse_tolerances(texts: Sequence[str], device_texts: Sequence[str]) -> dict[str, float]:
    """Return device -> tolerance: those of one device win over that of all.

    Raises:
        UsageError: one is no number of 0 or more, or stands twice.
    """
    old_texts = [text for text in texts if "=" in text]
    for text in old_texts:
        announce_old_spelling(f"--tolerance {text}", f"--device-tolerance {text}")
    numbers = [text for text in texts if text not in old_texts]
    if len(numbers) > 1:
        raise UsageError(f"--tolerance {numbers[1]}: given twice")
    tolerances = {d: _parse_tolerance(n, "--tolerance") for n in numbers for d in _DEVICES}
    pairs = (text.partition("=") for text in (*old_texts, *device_texts))
    named = [(d, _parse_tolerance(n, f"--device-tolerance {d}=")) for d, _, n in pairs]
    return tolerances | reject_duplicates("--device-tolerance", named)


def _parse_tolerance(text: str, option: str) -> float:
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not tolerance >= 0:
        raise UsageError(f"{option} {text}: expected a number that is 0 or more, such as 1e-5")
    return tolerance
