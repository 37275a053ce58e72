"""Inputs -> the check that runs a migrated file, also against the source in its old module."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.commands.sources.checkpoint_paths import PathLike, open_checkpoint_or_stdin
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.migration_requests import CheckRunOptions, RunMigrated, RunOptions
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.locations import Location

if TYPE_CHECKING:
    from torch import nn

    from ckptool.migration.check.strict_load import CheckResult, ForwardCheck
    from ckptool.migration.plan.pending_file import PendingFile


@dataclass(frozen=True, slots=True, eq=False)
class ForwardOptions:
    """How the migrated file is run, and the old module to compare its outputs with."""

    inputs: object
    """Arguments of forward; None for none."""
    device: str
    """"auto", "cuda", "simulated" or "cpu"."""
    old_module: "str | nn.Module | Callable[..., nn.Module] | None"
    donor: PathLike | None
    """File with its pickled attributes, if the source lacks them."""
    tolerance: float | None
    """Absolute and relative, of its outputs; None: they are bitwise equal."""


def make_forward_check(
    source: Location,
    module_target: ModuleTarget | None,
    options: ForwardOptions,
    limits: Limits,
    worker: ModuleWorker,
    *,
    dry_run: bool,
) -> "ForwardCheck | None":
    """Return a function that verifies a migrated file, also against the source in its old module.

    None without inputs; those of the configuration are taken if none are given. In a dry run, which
    writes no file, it is checked now that the inputs can be made and the old module can be built.

    Raises:
        UsageError: there are inputs and no module, or options that need inputs without any.
    """
    inputs = options.inputs
    is_part = module_target is not None and bool(module_target.into)
    if inputs is None and module_target is not None and not is_part:
        inputs = module_target.inputs or None
    if inputs is None:
        unused_options = {
            "--old-module": options.old_module is not None,
            "--device": options.device != "auto",
            "--tolerance": options.tolerance is not None,
        }
        reject_unused_options(unused_options, "applies to running the result: --input is required")
        return None
    if module_target is None:
        raise UsageError("--input: no module was given to run: use -m package.module:Name")
    from ckptool.migration.check.forward import judge_verification, require_confirmed_renames

    target = replace(module_target, into="")

    def open_files() -> RunOptions:
        donor = options.donor
        return RunOptions(
            open_checkpoint_or_stdin(source, limits),
            None if donor is None else open_checkpoint_or_stdin(donor, limits),
            options.old_module,
            inputs,
            options.device,
            options.tolerance,
            limits,
        )

    if dry_run:
        worker.ask(CheckRunOptions(target, open_files()))

    def check_forward(pending_file: "PendingFile") -> "tuple[CheckResult, ...]":
        run = worker.ask(RunMigrated(target, pending_file, open_files()))
        result = judge_verification(pending_file, run.verification)
        if not pending_file.keys_to_confirm:
            return (result,)
        renames = require_confirmed_renames(pending_file, run.verification, run.unconfirmed_keys)
        return result, renames

    return check_forward
