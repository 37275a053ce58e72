"""Context manager that reports unsaved state changed while a module is trained."""

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ckptool import report
from ckptool.errors import ModuleError, UsageError
from ckptool.policy import Policy, judge
from ckptool.reporting.checking import watched
from ckptool.rules import run

if TYPE_CHECKING:
    from torch import nn

    from ckptool.modules.snapshot import Snapshot

_ABOUT_SAVING: Final = ("CK101", "CK102", "CK103", "CK104", "CK105", "CK107", "CK108")
"""Rules that `watch` reports; rules about devices are left to `audit`."""


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
        self._before: Snapshot | None = None
        self._after: Snapshot | None = None
        self._failure: ModuleError | None = None

    def __enter__(self) -> Self:
        self._before, self._after, self._failure = self._look(), None, None
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
            self._after = self._look()
        except ModuleError as failure:
            # Do not end a training of days with an error here: `report` raises it instead.
            self._failure = failure

    @property
    def report(self) -> report.AuditReport:
        """Unsaved state that changed inside the block, or so far if it has not ended.

        Raises:
            UsageError: the block was not entered yet.
            ModuleError: the module cannot be examined.
        """
        if self._before is None:
            raise UsageError("nothing was watched yet: with ckptool.watch(model) as watched: ...")
        if self._failure is not None:
            raise self._failure
        from ckptool.modules import describe
        from ckptool.verification import lived

        target = type(self._module).__qualname__
        usage = lived.between(target, self._before, self._after or self._look())
        state = lived.informed(describe(self._module, target), usage)
        state = lived.only_changed(state, usage)
        found = [f for f in run([state, usage]) if f.rule.code in _ABOUT_SAVING]
        return watched(state, usage, judge(found, self._policy))

    def _look(self) -> "Snapshot":
        from ckptool.modules.snapshot import take
        from ckptool.modules.usercode import UserCodeError, user_code

        try:
            with user_code():
                return take(self._module)
        except UserCodeError as error:
            name = type(self._module).__qualname__
            raise ModuleError(name, f"looking through it raised {error}") from error
