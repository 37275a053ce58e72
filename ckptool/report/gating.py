"""Reports of `lock` and `gate`."""

from msgspec import Struct

from ckptool.report.parts import LevelReport, Report


class DifferenceReport(Struct, frozen=True, kw_only=True):
    """One difference between a lock and the current state."""

    key: str
    what: str
    """"added", "removed", "shape", "dtype", "kind", "saved", "owner", "version" ..."""
    old: str
    new: str


class LockReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"locked ...", "the lock holds", "the lock is stale ..." or "recorded"."""
    path: str
    """The lock file that was written or checked."""
    source: str
    """"module" or "checkpoint"."""
    name: str
    name_before: str
    """Source of the previous lock, "" if it is the same."""
    keys: int
    unsaved: int
    """Number of tensors of the module that are not in its state_dict."""
    standing: str
    """"the same", "compatible", "additive" or "breaking"; "" without a previous lock."""
    differences: tuple[DifferenceReport, ...]
    golden: str = ""
    """The checkpoint whose outputs were recorded, "" if a lock was written."""
    notes: tuple[str, ...] = ()


class PromiseReport(Struct, frozen=True, kw_only=True):
    """One compatibility requirement of a release and its result."""

    what: str
    """"against", "fixture" or "golden"."""
    name: str
    result: str
    """"compatible", "additive", "breaking" ...; "loads strictly", "migrates: ..." ..."""
    reason: str = ""
    """Why a fixture has no migration path, or how outputs differ."""


class GatedCheckpointReport(Struct, frozen=True, kw_only=True):
    """The results of one checkpoint of a release."""

    path: str
    verdict: str
    """"passed", "failed: ..." or "could not be checked: ..."."""
    passed: bool
    container: str = ""
    """"" if the checkpoint could not be read; then all fields below keep their defaults."""
    nbytes: int = 0
    module: str = ""
    """"" if none is named: rules about modules were not run."""
    at: str = ""
    rules: tuple[str, ...] = ()
    """Codes of the rules that ran on it."""
    levels: tuple[LevelReport, ...] = ()
    """Levels of the verification that the policy requires."""
    promises: tuple[PromiseReport, ...] = ()

    @property
    def is_unchecked(self) -> bool:
        """Whether it could not be checked; a module without checkpoint has no container."""
        return not (self.container or self.module)


class GateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"passed ...", "failed ..." or "could not check ..."."""
    checkpoints: tuple[GatedCheckpointReport, ...]
    policy: str
    """The file of the policy, "" if there is none."""
    errors: tuple[str, ...] = ()
    """One line for each checkpoint that could not be checked."""
    notes: tuple[str, ...] = ()


class SettingReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str
    origin: str
    """"default", an option, or "FILE: [table]"."""
    path: str = ""
    """The checkpoint that the setting applies to, "" for all."""


class PolicyReport(Report, frozen=True, kw_only=True):
    settings: tuple[SettingReport, ...]
