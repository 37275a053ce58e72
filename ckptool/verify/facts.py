"""What verifying a checkpoint with its module found: frozen, plain, and without torch."""

from enum import StrEnum

from msgspec import Struct

from ckptool.model import Skipped


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

    def level(self, level: Level) -> LevelResult:
        return next(one for one in self.levels if one.level is level)
