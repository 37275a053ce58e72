"""Old checkpoint x ModuleTarget -> FixtureResult: its route into the module."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ckptool.commands.sources.checkpoint_paths import open_checkpoint_or_stdin
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.migration_requests import load_target_module
from ckptool.commands.worker.worker import InProcessWorker
from ckptool.compare.contracts.contract import FixtureResult
from ckptool.compare.module_diff import strict_load_obstacles
from ckptool.errors import PlanError
from ckptool.formats.limits import Limits
from ckptool.migration.plan.container_limits import TORCH
from ckptool.migration.plan.operation import Operation
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.request import MigrationRequest
from ckptool.migration.run import run_migration
from ckptool.phrases import join_limited
from ckptool.verification.levels import load
from ckptool.verification.result import LevelStatus

_MAX_STEPS: Final = 4
"""Plan operations named in one line of text."""


def check_fixture(
    path: Path, module_target: ModuleTarget, plans: Mapping[str, Plan], limits: Limits
) -> FixtureResult:
    """Return how an old checkpoint gets into the module, or why it does not.

    Raises:
        ReadError: the checkpoint cannot be read.
        ModuleError: the module cannot be imported or built.
    """
    checkpoint = open_checkpoint_or_stdin(path, limits)
    if module_target.at is not None and all(
        state.at != module_target.at for state in checkpoint.states
    ):
        # `at` is for the new file; an old file may have its state elsewhere.
        module_target = replace(module_target, at=None)
    with module_target.open_verification_target(checkpoint) as verification_target:
        module_diff = verification_target.module_diff
        module_name, missing_keys = module_diff.module.target, module_diff.absent_keys
        load_result = load.check_strict_load(
            load.load_module_factory(verification_target.factory, module_diff)
        )
    if load_result.status is LevelStatus.PASSED:
        return FixtureResult(str(path), module_name, "loads strictly", missing_keys=missing_keys)
    reasons = []
    for plan_name, plan in ({"": None} | dict(plans)).items():
        steps, reason = _dry_run_plan(path, module_target, (plan_name, plan), limits)
        if not reason:
            route = f"migrates by {plan_name}" if plan_name else "migrates"
            return FixtureResult(
                str(path), module_name, f"{route}: {steps}", missing_keys=missing_keys
            )
        reasons.append(reason)
    if plans:
        # The reasons why the given plans fail come first: they are what the author can fix.
        reasons = [*reasons[1:], "no plan can be derived from the file and the module alone"]
    return FixtureResult(
        str(path),
        module_name,
        "",
        "; ".join(_strip_path_prefix(path, reason) for reason in reasons),
    )


def _dry_run_plan(
    path: Path, module_target: ModuleTarget, named_plan: tuple[str, Plan | None], limits: Limits
) -> tuple[str, str]:
    """Return the plan's operations as text and "", or "" and why the dry run fails."""
    plan_name, plan = named_plan
    request = MigrationRequest(
        source=path,
        target=None,
        module=partial(load_target_module, InProcessWorker(), module_target),
        at=module_target.at,
        to=TORCH,
        plan=plan,
        plan_name=plan_name,
        dry_run=True,
        limits=limits,
    )
    try:
        result = run_migration(request)
    except PlanError as error:
        return "", str(error)
    if result.diff is None or not result.diff.is_strict:
        obstacles = strict_load_obstacles(result.diff) if result.diff else ""
        failure = f"what {plan_name or 'it'} leads to does not load strictly"
        return "", f"{failure}: {obstacles}" if obstacles else failure
    steps = join_limited(result.plan.ops, _MAX_STEPS, _format_step, more=" and {} steps more")
    return steps or "nothing to do", ""


def _format_step(operation: Operation) -> str:
    before, after = operation.before_after_text
    return f"{operation.__struct_config__.tag} {after if before == '-' else before}"


def _strip_path_prefix(path: Path, reason: str) -> str:
    return reason.removeprefix(f"{path}: ")
