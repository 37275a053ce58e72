"""Run a module with a checkpoint: load, forward, devices, round trip, equality."""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ckptool.commands.comparison.previews import add_module_diff_previews
from ckptool.commands.sources.checkpoint_paths import PathLike, open_checkpoint_or_stdin
from ckptool.commands.sources.module_choice import ModuleOptions, describe_choices, need_target
from ckptool.commands.sources.option_checks import reject_negative_numbers, reject_unused_options
from ckptool.commands.worker.requests import OldCheckpoint, VerifyCheckpoint
from ckptool.commands.worker.worker import get_worker, start_early
from ckptool.compare.states import require_undamaged
from ckptool.config import ProjectConfig
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import parse_location
from ckptool.policy import Policy, judge
from ckptool.reports.verify import VerifyReport, build_verify_report
from ckptool.rules import run_rules

if TYPE_CHECKING:
    from torch import nn


def verify(  # noqa: PLR0913
    path: PathLike,
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    loader: str | None = None,
    base: PathLike | None = None,
    at: str | None = None,
    device: str = "auto",
    old: PathLike | None = None,
    old_module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    inputs: object = None,
    tolerance: float | None = None,
    against: PathLike | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
    pictures: bool = False,
) -> VerifyReport:
    """Load a checkpoint, run its module, and compare outputs with those of an older checkpoint.

    Args:
        path: the checkpoint.
        module: "package.module:Name", a live module, or a class or function to call; None takes
            the configuration's.
        kwargs: constructor arguments; for a live module, those it was built with.
        fresh: function that builds a module like a live one, if `kwargs` do not determine it.
        loader: framework whose loader loads it ("transformers", ...), or "torch" for
            load_state_dict; None selects it by the folder.
        base: folder of the model that an adapter is for; None for the one that it names.
        at: dotted place of the state in the file ("state_dict"); None takes the best match.
        device: "auto", "cuda", "cuda:1", "simulated" or "cpu".
        old: the old checkpoint, whose module must compute the same outputs.
        old_module: the module of `old`; None takes the same module.
        inputs: arguments of forward: specs such as "float32[2,6,3]", or "package.module:function",
            or the values themselves; None takes those of the configuration or the module.
        tolerance: absolute and relative; None is exact on one device, and the dtype's default
            across devices.
        against: `old` as it was called up to 0.1; deprecated.
        policy: reported findings, and the level from which they fail.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: read the values of small buffers, for drawing.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: a module cannot be imported or built.
        UsageError: no module is named, the device does not exist, or the inputs are invalid.
    """
    if against is not None:
        warnings.warn("verify(against=...) is old=... now", DeprecationWarning, stacklevel=2)
        old = against if old is None else old
    has_unused_old_module = old_module is not None and old is None
    reject_unused_options(
        {"--old-module": has_unused_old_module},
        "is the module of an old checkpoint: --old is required",
    )
    reject_negative_numbers({"--tolerance": tolerance})
    location = parse_location(path)
    module_options = ModuleOptions(module, kwargs, at, loader=loader, base=base, fresh=fresh)
    module_target = need_target(location, module_options, config)
    worker = get_worker()
    start_early(worker, module_target, location)
    checkpoint = open_checkpoint_or_stdin(location, limits, loader)
    require_undamaged(checkpoint)
    old_checkpoint = None
    if old is not None:
        old_checkpoint = OldCheckpoint(open_checkpoint_or_stdin(old, limits), old_module)
        require_undamaged(old_checkpoint.checkpoint)
    result = worker.ask(
        VerifyCheckpoint(
            module_target,
            checkpoint,
            device,
            inputs=inputs,
            tolerance=tolerance,
            old=old_checkpoint,
        )
    )
    verification, module_diff = result.verification, result.build_diff(checkpoint, module_target.at)
    verdict = judge(
        run_rules([verification], location),
        policy or Policy(),
        differs=bool(verification.failed_levels),
    )
    notes = describe_choices(module_diff, module_target)
    verify_report = build_verify_report(verification, module_diff.state.at, verdict, notes)
    return add_module_diff_previews(verify_report, module_diff) if pictures else verify_report
