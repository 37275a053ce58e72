"""What was promised, and what a release kept."""

from msgspec import Struct

from ckptool.report.parts import LevelReport, Report


class DifferenceReport(Struct, frozen=True, kw_only=True):
    """One thing that a lock says, and that is another now."""

    key: str
    what: str
    """"added", "removed", "shape", "dtype", "kind", "saved", "owner", "version" ..."""
    old: str
    new: str


class LockReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"locked ...", "the lock holds", "the lock is stale ..." or "recorded"."""
    path: str
    """What was written or checked."""
    source: str
    """"module" or "checkpoint"."""
    name: str
    name_before: str
    """What the lock before was taken from, "" where that is the same."""
    keys: int
    unsaved: int
    """Tensors that the module holds beside its state_dict."""
    standing: str
    """"the same", "compatible", "additive" or "breaking"; "" where there was no lock before."""
    differences: tuple[DifferenceReport, ...]
    golden: str = ""
    """The checkpoint whose outputs were recorded, "" where a lock was written."""
    notes: tuple[str, ...] = ()


class PromiseReport(Struct, frozen=True, kw_only=True):
    """One thing that a release was held to."""

    what: str
    """"against", "fixture" or "golden"."""
    name: str
    result: str
    """"compatible", "additive", "breaking" ...; "loads strictly", "migrates: ..." ..."""
    reason: str = ""
    """Why a fixture has no way, or how outputs differ."""


class GatedReport(Struct, frozen=True, kw_only=True):
    """One checkpoint of a release."""

    path: str
    verdict: str
    """"passed", "failed: ..." or "could not be checked: ..."."""
    passed: bool
    container: str = ""
    """"" where it could not be read, as all that follows."""
    nbytes: int = 0
    module: str = ""
    """"" where none is named: the rules about modules were not run then."""
    at: str = ""
    rules: tuple[str, ...] = ()
    """Codes of the rules that looked at it."""
    levels: tuple[LevelReport, ...] = ()
    """Of the verification that the policy requires."""
    promises: tuple[PromiseReport, ...] = ()

    @property
    def unread(self) -> bool:
        """Whether it could not be checked; of a module alone there is no container."""
        return not (self.container or self.module)


class GateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"passed ...", "failed ..." or "could not check ..."."""
    checkpoints: tuple[GatedReport, ...]
    policy: str
    """The file of the policy, "" where there is none."""
    errors: tuple[str, ...] = ()
    """One line for each checkpoint that could not be checked."""
    notes: tuple[str, ...] = ()


class SettingReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str
    origin: str
    """"default", an option, or "FILE: [table]"."""
    path: str = ""
    """The checkpoint for which it holds, "" for all."""


class PolicyReport(Report, frozen=True, kw_only=True):
    settings: tuple[SettingReport, ...]
