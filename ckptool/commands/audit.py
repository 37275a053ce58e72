"""Report the state of a module that its state_dict does not hold."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from ckptool.commands.comparison.previews import add_module_previews
from ckptool.commands.sources.checkpoint_paths import PathLike
from ckptool.commands.sources.configured_models import list_configured_targets
from ckptool.commands.sources.file_arguments import Arguments
from ckptool.commands.sources.module_choice import ModuleOptions, need_target
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule
from ckptool.commands.worker.worker import get_worker
from ckptool.config import ProjectConfig, load_config
from ckptool.errors import ModuleError, UsageError
from ckptool.formats.files.source import open_source, path_exists
from ckptool.locations import parse_location
from ckptool.model import ModuleInfo
from ckptool.policy import Policy, judge
from ckptool.reports.audit import (
    AuditReport,
    ProjectAuditReport,
    build_audit_report,
    build_project_audit_report,
)
from ckptool.rules import run_rules

if TYPE_CHECKING:
    from torch import nn

    from ckptool.verification.result import UsageChanges


def audit(
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    *,
    folder: PathLike | None = None,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    inputs: object = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    policy: Policy | None = None,
    config: ProjectConfig | None = None,
    pictures: bool = False,
) -> AuditReport | ProjectAuditReport:
    """Report the state of a module that its state_dict lacks; with `inputs`, also run forward.

    A live module is compared with a new instance that has its state_dict loaded: the differences
    are what a save loses.

    Args:
        module: "package.module:Name", a class or function to call, or a live module, trained or
            not; None, without `folder`, takes all modules of the configuration.
        folder: a framework's folder, whose configuration names the module.
        loader: framework whose loader is used; None selects it by the folder.
        kwargs: constructor arguments; for a live module, the arguments it was built with.
        inputs: as for `verify`.
        fresh: function that builds a module like the live one, if `kwargs` do not determine it.
        policy: reported findings, and the level from which they fail.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: include the values of small buffers and unsaved tensors, for drawing.

    Raises:
        ReadError: there is no such folder.
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the inputs are invalid.
    """
    if module is None and folder is None:
        unused_options = {"-k": bool(kwargs), "--loader": loader is not None}
        reject_unused_options(unused_options, "is for the module that -m names")
        return _audit_project(config or load_config(Path.cwd()), inputs, policy or Policy())
    location = None if folder is None else parse_location(folder)
    if isinstance(location, Path) and not path_exists(location):
        with open_source(location):  # raises ReadError with what was probably meant
            pass
    module_target = _choose_target(
        ModuleOptions(module, kwargs, loader=loader, fresh=fresh), folder
    )
    facts = get_worker().ask(DescribeModule(module_target, inputs=inputs))
    module_info = facts.module_info
    usage_changes: tuple[UsageChanges, ...] = ()
    if module_target.is_live:
        module_info, usage_changes = _find_usage_changes(
            cast("nn.Module", module), kwargs, fresh, module_info
        )
    module_info, forward_effects = facts.apply_effects(module_info), facts.forward_effects
    audit_report = build_audit_report(
        module_info,
        judge(run_rules([module_info, *forward_effects, *usage_changes]), policy or Policy()),
    )
    return add_module_previews(audit_report, module_info) if pictures else audit_report


def _audit_project(config: ProjectConfig, inputs: object, policy: Policy) -> ProjectAuditReport:
    """Audit the modules of a configuration; one that cannot be built does not stop the others.

    Raises:
        UsageError: it names none.
    """
    worker = get_worker()
    audit_reports: list[AuditReport] = []
    errors: list[str] = []
    for entry, module_target in list_configured_targets(config):
        config.announce_code(entry.module)
        try:
            facts = worker.ask(DescribeModule(module_target, inputs=inputs))
        except ModuleError as error:
            errors.append(str(error))
            continue
        module_info = facts.apply_effects()
        verdict = judge(run_rules([module_info, *facts.forward_effects]), policy)
        audit_reports.append(build_audit_report(module_info, verdict))
    if not (audit_reports or errors):
        raise UsageError(
            "no module was given: use -m package.module:Name, a framework's folder, or "
            "[[tool.ckptool.models]] of pyproject.toml or ckptool.toml (ckptool init writes it)"
        )
    return build_project_audit_report(tuple(audit_reports), tuple(errors))


def _choose_target(module_options: ModuleOptions, folder: PathLike | None) -> ModuleTarget:
    """Return the named module, or that of the folder.

    Raises:
        UsageError: the folder's configuration names no module.
    """
    if folder is not None:
        return need_target(parse_location(folder), module_options, ProjectConfig())
    named_target = module_options.target
    assert named_target is not None
    loader = module_options.loader
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
