"""Context manager that reports unsaved state changed while a module, or another object, is used."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from ckptool.commands.sources.checkpoint_paths import name_kind
from ckptool.errors import CkptoolError, ModuleError, UsageError
from ckptool.policy import Policy, judge
from ckptool.reports.audit import AuditReport, build_object_report, build_watch_report
from ckptool.rules import run_rules
from ckptool.rules.module_state import LOST_STATE

if TYPE_CHECKING:
    from torch import nn

    from ckptool.modules.live.snapshot import ModuleSnapshot
    from ckptool.verification.loading.object_round_trip import ObjectState
    from ckptool.verification.result import ObjectChanges

_NOT_ENTERED: Final = "nothing was watched: use with ckptool.watch(model) as watched: ..."


def watch(
    module: "nn.Module | HasStateDict", *, policy: Policy | None = None
) -> "Watched | WatchedObject":
    """Watch a module: `with ckptool.watch(model) as watched: train(model)`.

    `watched.report` has the state that changed inside the block and is not in the state_dict. A
    snapshot is taken when the block begins and when it ends, so training steps are not slowed.

    Other objects with `state_dict` and `load_state_dict` can be watched as well: optimizers,
    schedulers, samplers, data loaders, a GradScaler, averaged weights. A copy made when the block
    begins loads the state_dict() of when it ends, and the report has what changed and was not
    restored. The copy shares the model's parameters.

    Args:
        module: a live module, or an object with `state_dict` and `load_state_dict`.
        policy: reported findings, and the level from which they fail.

    Raises:
        UsageError: it has no state_dict, or is a class.
    """
    is_instance = not isinstance(module, type)
    if is_instance and hasattr(module, "named_modules"):
        return Watched(module, policy or Policy())  # type: ignore[arg-type]
    if not (is_instance and hasattr(module, "state_dict") and hasattr(module, "load_state_dict")):
        raise UsageError(
            f"watch() takes a live object with state_dict() and load_state_dict(), not "
            f"{name_kind(module)}"
        )
    return WatchedObject(module, policy or Policy())


class HasStateDict(Protocol):
    """An object that saves and loads its state as optimizers do."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over a state."""


class _WatchedBlock(ABC):
    """Context manager that looks at state when the block begins and when it ends."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._failure: ModuleError | None = None

    @abstractmethod
    def _begin(self) -> None:
        """Record the state.

        Raises:
            ModuleError: it cannot be examined.
        """

    @abstractmethod
    def _end(self) -> None:
        """Record the state again, or what changed.

        Raises:
            ModuleError: it cannot be examined.
        """

    @property
    @abstractmethod
    def report(self) -> AuditReport:
        """What was found; CkptoolError if there is no result."""

    def __str__(self) -> str:
        """Return the report as text, or why there is none."""
        try:
            return str(self.report)
        except CkptoolError as error:
            return str(error)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002, FBT001
        printer.text(str(self))

    def _repr_html_(self) -> str | None:
        try:
            return self.report._repr_html_()
        except CkptoolError:
            return None  # the text says why

    def __enter__(self) -> Self:
        self._failure = None
        self._begin()
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
            self._end()
        except ModuleError as failure:
            # Do not end a training of days with an error here: `report` raises it instead.
            self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class Watched(_WatchedBlock):
    """Context manager that watches a module; `report` has the result."""

    def __init__(self, module: "nn.Module", policy: Policy) -> None:
        super().__init__(policy)
        self._module = module
        self._old_snapshot: ModuleSnapshot | None = None
        self._new_snapshot: ModuleSnapshot | None = None

    def _begin(self) -> None:
        self._old_snapshot, self._new_snapshot = self._take_snapshot(), None

    def _end(self) -> None:
        self._new_snapshot = self._take_snapshot()

    @property
    def report(self) -> AuditReport:
        """Unsaved state that changed inside the block, or so far if it has not ended.

        Raises:
            UsageError: the block was not entered yet.
            ModuleError: the module cannot be examined.
        """
        if self._old_snapshot is None:
            raise UsageError(_NOT_ENTERED)
        self._raise_failure()
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
        from ckptool.modules.live.snapshot import take_snapshot
        from ckptool.modules.user_code import UserCodeError, user_code

        try:
            with user_code():
                return take_snapshot(self._module)
        except UserCodeError as error:
            name = type(self._module).__qualname__
            raise ModuleError(name, f"walking through it raised {error}") from error


class WatchedObject(_WatchedBlock):
    """Context manager that watches an object with a state_dict; `report` has the result."""

    def __init__(self, owner: HasStateDict, policy: Policy) -> None:
        super().__init__(policy)
        self._owner = owner
        self._before: ObjectState | None = None
        self._changes: ObjectChanges | None = None

    def _begin(self) -> None:
        from ckptool.verification.loading.object_round_trip import record_object

        self._changes = None
        with self._examine():
            self._before = record_object(self._owner)

    def _end(self) -> None:
        self._changes = self._find_changes()

    @property
    def report(self) -> AuditReport:
        """What changed inside the block and is not restored, or so far if it has not ended.

        Raises:
            UsageError: the block was not entered yet.
            ModuleError: the object cannot be examined, or its state_dict() raises.
        """
        self._raise_failure()
        changes = self._changes or self._find_changes()
        return build_object_report(changes, judge(run_rules([changes]), self._policy))

    def _find_changes(self) -> "ObjectChanges":
        from ckptool.verification.loading.object_round_trip import find_lost_changes
        from ckptool.verification.usage_changes import SINCE_BLOCK_START

        if self._before is None:
            raise UsageError(_NOT_ENTERED)
        with self._examine():
            return find_lost_changes(self._owner, self._before, SINCE_BLOCK_START)

    @contextmanager
    def _examine(self) -> Iterator[None]:
        """Raise what the object's own code raises as ModuleError."""
        from ckptool.modules.user_code import UserCodeError

        try:
            yield
        except UserCodeError as error:
            name = type(self._owner).__qualname__
            raise ModuleError(name, f"reading its state raised {error}") from error
