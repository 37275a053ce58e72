"""Look at a module while it is trained."""

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
"""What watching tells of; what a module does on a device is for `audit`."""


def watch(module: "nn.Module", *, policy: Policy | None = None) -> "Watched":
    """Watch a module: `with ckptool.watch(model) as watched: train(model)`.

    It is looked at when the block begins and when it ends, never in between: steps take as long as
    they do without. `watched.report` is what changed inside and no state_dict holds.

    Args:
        module: a live module.
        policy: which findings are reported, and from which level on they fail.
    """
    return Watched(module, policy or Policy())


class Watched:
    """A module that is watched; `report` says what was found."""

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
            # A training that took days is not to end here: who asks for the report is told.
            self._failure = failure

    @property
    def report(self) -> report.AuditReport:
        """What changed inside the block, or so far: plain state that a save loses.

        Raises:
            UsageError: nothing was watched yet.
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
