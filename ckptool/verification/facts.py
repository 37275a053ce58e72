"""What verifying a checkpoint with its module found: frozen, plain, and without torch."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from ckptool.model import Constancy, Skipped


class Level(StrEnum):
    """The steps of a verification, in order."""

    LOAD = "load"
    DEVICE = "device"
    FORWARD = "forward"
    EQUALITY = "equality"
    ROUND_TRIP = "round trip"
    SURVIVAL = "survival"


class Status(StrEnum):
    """What became of a level. Only `passed` is good news."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    INCONCLUSIVE = "inconclusive"
    """It was tried, and what was tried proves nothing: the reason says why."""


class LevelResult(Struct, frozen=True):
    level: Level
    status: Status
    reason: str = ""
    """Why it failed, was skipped or is inconclusive; "" where it passed."""
    device: str = ""
    """Where it ran: "cpu", "cuda:0", "simulated cuda:0"; "" where nothing ran."""
    details: tuple[str, ...] = ()
    """What was measured or seen, one short sentence each."""


class Clash(Struct, frozen=True):
    """An operation whose operands are on two devices, where CUDA would refuse it."""

    attribute: str
    """Path of the tensor that is in the wrong place; "" where the module does not hold it."""
    what: str
    """What that tensor is: "a plain attribute", "created at net.py:8"."""
    devices: tuple[str, str]
    """Where it is, and where it would have to be."""
    op: str
    where: str
    """"file:line" of the innermost frame of the user's code."""
    module: str
    """Path of the module whose forward was running, "" is the root."""
    assigned: str = ""
    """"file:line" where the attribute got its value, "" if unknown."""


class PythonChange(Struct, frozen=True):
    """A plain Python attribute of a module that a forward pass changed."""

    path: str
    before: str
    after: str
    flag: bool
    """Whether it is a truth value: a branch depends on it, as a rule."""
    owner: str
    """Qualified name of the class of the module that holds it."""


class Exercise(Struct, frozen=True):
    """What running a module once taught about it."""

    module: str
    changed: tuple[PythonChange, ...] = ()
    mutated: tuple[str, ...] = ()
    """Paths of tensors and arrays that forward changed or made."""
    used: Mapping[str, str] = {}
    """Path of a tensor that no state_dict has -> "file:line" of its first use in forward."""
    ran: bool = False
    """Whether forward went through, so that what was not used is not used."""
    round_trip: str = ""
    """How the output differed after save and load into a fresh instance, "" if it did not."""
    skipped: tuple[Skipped, ...] = ()


class Drift(Struct, frozen=True):
    """An output that is not what was recorded."""

    device: str
    how: str
    """What differs first, and by how much."""
    tolerance: str


class Replay(Struct, frozen=True):
    """A module that was run again on the inputs of a golden file."""

    path: str
    """The checkpoint whose weights it had."""
    module: str
    golden: str
    drifts: tuple[Drift, ...] = ()
    passed: tuple[str, ...] = ()
    """Where it computed the same, each with the largest difference."""
    circumstances: tuple[str, ...] = ()
    """What else is not as it was when it was recorded: torch's version, the weights."""
    skipped: tuple[Skipped, ...] = ()


class Usage(Struct, frozen=True):
    """What using a module, or training it, changed and a save would lose."""

    module: str
    since: str
    """Since when: "since it was built", "inside the with block"."""
    changed: tuple[PythonChange, ...] = ()
    constancy: Mapping[str, Constancy] = {}
    """Path of unsaved state -> what is known of its value now."""
    skipped: tuple[Skipped, ...] = ()


class Verification(Struct, frozen=True):
    """All levels of one run, and what the rules need to know of it."""

    path: str
    module: str
    device: str
    levels: tuple[LevelResult, ...]
    clashes: tuple[Clash, ...] = ()
    round_trip: str = ""
    """How the output differed after save and load into a fresh instance, "" if it did not."""
    on_meta: tuple[str, ...] = ()
    """What has no value after a build on meta and `load_state_dict(assign=True)`."""
    untied: tuple[tuple[str, ...], ...] = ()
    """Groups of keys that are one tensor, and several after `load_state_dict(assign=True)`."""
    lost: tuple[str, ...] = ()
    """State that a save and a load did not bring back, changed beforehand."""
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def failed(self) -> tuple[LevelResult, ...]:
        return tuple(one for one in self.levels if one.status is Status.FAILED)

    def level(self, level: Level) -> LevelResult:
        """Return what became of `level`."""
        return next(one for one in self.levels if one.level is level)
