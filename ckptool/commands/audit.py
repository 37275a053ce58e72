"""Report the state of a module that its state_dict does not hold."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.commands.option_checks import reject_unused_options
from ckptool.commands.previews import add_module_previews
from ckptool.commands.target import (
    Arguments,
    ModuleOptions,
    ModuleTarget,
    PathLike,
    need_target,
)
from ckptool.commands.worker.requests import DescribeModule
from ckptool.commands.worker.worker import get_worker
from ckptool.config import ProjectConfig
from ckptool.errors import UsageError
from ckptool.locations import parse_location
from ckptool.model import ModuleInfo
from ckptool.policy import Policy, judge
from ckptool.reports.audit import AuditReport, build_audit_report
from ckptool.rules import run_rules

if TYPE_CHECKING:
    from torch import nn

    from ckptool.verification.result import UsageChanges


def audit(
    module: "str | nn.Module | None" = None,
    *,
    folder: PathLike | None = None,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    inputs: object = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    policy: Policy | None = None,
    pictures: bool = False,
) -> AuditReport:
    """Report the state of a module that its state_dict lacks; with `inputs`, also run forward.

    A live module is compared with a fresh instance that has its state_dict loaded: the differences
    are what a save loses.

    Args:
        module: "package.module:Name" or a live module, trained or not.
        folder: a framework's folder, whose configuration names the module.
        loader: framework whose loader loads it; None takes what the folder says.
        kwargs: constructor arguments; for a live module, the arguments it was built with.
        inputs: as for `verify`.
        fresh: function that builds a module like the live one, if `kwargs` do not determine it.
        policy: reported findings, and the level from which they fail.
        pictures: include the values of small buffers and unsaved tensors, for drawing.

    Raises:
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the inputs are invalid.
    """
    if module is None and folder is None:
        raise UsageError("no module was given: use -m package.module:Name, or a framework's folder")
    module_target = _choose_target(module, folder, kwargs, loader)
    if isinstance(module_target.module, str):
        reject_unused_options(
            {"fresh=": fresh is not None}, "builds a module like a live one: a name says itself how"
        )
    facts = get_worker().ask(DescribeModule(module_target, inputs=inputs))
    module_info = facts.module_info
    usage_changes: tuple[UsageChanges, ...] = ()
    if not isinstance(module_target.module, str):
        module_info, usage_changes = _find_usage_changes(
            module_target.module, kwargs, fresh, module_info
        )
    module_info, forward_effects = facts.apply_effects(module_info), facts.forward_effects
    audit_report = build_audit_report(
        module_info,
        judge(run_rules([module_info, *forward_effects, *usage_changes]), policy or Policy()),
    )
    return add_module_previews(audit_report, module_info) if pictures else audit_report


def _choose_target(
    module: "str | nn.Module | None",
    folder: PathLike | None,
    kwargs: Arguments | None,
    loader: str | None,
) -> ModuleTarget:
    """Return the named module, or that of the folder.

    Raises:
        UsageError: the folder's configuration names no module.
    """
    module_options = ModuleOptions(module, kwargs, loader=loader)
    if folder is not None:
        return need_target(parse_location(folder), module_options, ProjectConfig())
    named_target = module_options.target
    assert named_target is not None
    return (
        named_target
        if loader is None
        else replace(named_target, loader=loader, is_loader_required=True)
    )


def _find_usage_changes(
    module: "nn.Module",
    kwargs: Arguments | None,
    fresh: "Callable[[], nn.Module] | None",
    module_info: ModuleInfo,
) -> "tuple[ModuleInfo, tuple[UsageChanges, ...]]":
    """Return a live module's description, and its changes since construction."""
    from ckptool.verification import usage_changes

    usage = usage_changes.changes_since_construction(module, kwargs, fresh)
    return usage_changes.with_usage(module_info, usage), (usage,)
