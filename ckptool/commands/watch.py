"""Context manager that reports unsaved state changed while a module is trained."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from ckptool.errors import ModuleError, UsageError
from ckptool.policy import Policy, judge
from ckptool.reports.audit import AuditReport, build_watch_report
from ckptool.rules import run_rules
from ckptool.rules.module_state import LOST_STATE

if TYPE_CHECKING:
    from torch import nn

    from ckptool.modules.snapshot import ModuleSnapshot


def watch(module: "nn.Module", *, policy: Policy | None = None) -> "Watched":
    """Watch a module: `with ckptool.watch(model) as watched: train(model)`.

    A snapshot is taken when the block begins and when it ends, so training steps are not slowed.
    `watched.report` has the state that changed inside and is not in the state_dict.

    Args:
        module: a live module.
        policy: reported findings, and the level from which they fail.
    """
    return Watched(module, policy or Policy())


class Watched:
    """Context manager that watches a module; `report` has the result."""

    def __init__(self, module: "nn.Module", policy: Policy) -> None:
        self._module = module
        self._policy = policy
        self._old_snapshot: ModuleSnapshot | None = None
        self._new_snapshot: ModuleSnapshot | None = None
        self._failure: ModuleError | None = None

    def __enter__(self) -> Self:
        self._old_snapshot, self._new_snapshot, self._failure = self._take_snapshot(), None, None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        try:
            self._new_snapshot = self._take_snapshot()
        except ModuleError as failure:
            # Do not end a training of days with an error here: `report` raises it instead.
            self._failure = failure

    @property
    def report(self) -> AuditReport:
        """Unsaved state that changed inside the block, or so far if it has not ended.

        Raises:
            UsageError: the block was not entered yet.
            ModuleError: the module cannot be examined.
        """
        if self._old_snapshot is None:
            raise UsageError("nothing was watched: use with ckptool.watch(model) as watched: ...")
        if self._failure is not None:
            raise self._failure
        from ckptool.modules import describe_module
        from ckptool.verification import usage_changes

        target = type(self._module).__qualname__
        usage = usage_changes.changes_between(
            target, self._old_snapshot, self._new_snapshot or self._take_snapshot()
        )
        module_info = usage_changes.with_usage(describe_module(self._module, target), usage)
        module_info = usage_changes.keep_only_changed(module_info, usage)
        findings = [
            finding
            for finding in run_rules([module_info, usage])
            if finding.rule.code in LOST_STATE
        ]
        return build_watch_report(module_info, usage, judge(findings, self._policy))

    def _take_snapshot(self) -> "ModuleSnapshot":
        from ckptool.modules.snapshot import take_snapshot
        from ckptool.modules.user_code import UserCodeError, user_code

        try:
            with user_code():
                return take_snapshot(self._module)
        except UserCodeError as error:
            name = type(self._module).__qualname__
            raise ModuleError(name, f"walking through it raised {error}") from error
