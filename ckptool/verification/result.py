"""Result structs of a verification: frozen, and without torch."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import Constancy, ModuleInfo, ModuleTensor, Skipped


class VerificationLevel(StrEnum):
    """Levels of a verification, in order."""

    LOAD = "load"
    DEVICE = "device"
    FORWARD = "forward"
    EQUALITY = "equality"
    ROUND_TRIP = "round trip"
    PERSISTENCE = "persistence"


class LevelStatus(StrEnum):
    """Outcome of a level."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    INCONCLUSIVE = "inconclusive"
    """It was run without a conclusive result; `reason` has the cause."""


class LevelResult(Struct, frozen=True):
    level: VerificationLevel
    status: LevelStatus
    reason: str = ""
    """Why it failed, was skipped or is inconclusive, or what is suspicious of what passed."""
    device: str = ""
    """Device label: "cpu", "cuda:0", "simulated cuda:0"; "" if nothing ran."""
    details: tuple[str, ...] = ()
    """Measurements, observations and what to do, one short sentence each."""


class DeviceMismatch(Struct, frozen=True):
    """An operation with operands on two devices, which CUDA would refuse."""

    attribute: str
    """Path of the misplaced tensor in the module; "" if the module does not hold it."""
    description: str
    """Kind or origin of that tensor: "a plain attribute", "created at net.py:8"."""
    devices: tuple[str, str]
    """(actual, required)."""
    op: str
    where: str
    """"file:line" of the innermost frame of the user's code."""
    module: str
    """Path of the module whose forward was running, "" is the root."""
    held_tensor: ModuleTensor | None = None
    """The module's tensor at `attribute`, None if there is none."""


class PythonChange(Struct, frozen=True):
    """A plain Python attribute of a module whose value changed."""

    path: str
    old_text: str
    new_text: str
    is_flag: bool
    """Whether it is a bool: usually a branch depends on it."""
    owner_class: str
    """Qualified name of the class of the module that holds it."""


class ForwardEffects(Struct, frozen=True):
    """Effects of running forward on a module's state."""

    module: str
    changed_values: tuple[PythonChange, ...] = ()
    mutated_paths: tuple[str, ...] = ()
    """Paths of tensors and arrays that forward changed or created."""
    first_uses: Mapping[str, str] = {}
    """Path of a tensor of the module -> "file:line" of its first use in forward."""
    round_trip_difference: str = ""
    """Output difference after save and load into a new instance, "" if none."""
    skipped: tuple[Skipped, ...] = ()

    def apply_to(self, module_info: ModuleInfo) -> ModuleInfo:
        """Return the ModuleInfo with `constancy` and `used_at` of unsaved tensors updated."""
        module_tensors = dict(module_info.tensors)
        for key, module_tensor in module_info.unsaved_tensors.items():
            constancy = Constancy.MUTATED if key in self.mutated_paths else module_tensor.constancy
            module_tensors[key] = replace(
                module_tensor,
                constancy=constancy,
                used_at=self.first_uses.get(key, module_tensor.used_at),
            )
        skipped = (*module_info.skipped, *self.skipped)
        return replace(module_info, tensors=module_tensors, skipped=skipped)


class OutputDrift(Struct, frozen=True):
    """An output that differs from the recorded one."""

    device: str
    description: str
    """First difference and the largest differences."""
    tolerance: str


class GoldenReplay(Struct, frozen=True):
    """Result of running a module on the inputs of a golden file."""

    path: str
    """The checkpoint whose weights were used."""
    module: str
    golden: str
    output_drifts: tuple[OutputDrift, ...] = ()
    matching_devices: tuple[str, ...] = ()
    """Devices with equal outputs, each with the largest difference: "cpu: ..."."""
    environment_notes: tuple[str, ...] = ()
    """torch's version and the weights, compared with those of the recording."""
    skipped: tuple[Skipped, ...] = ()


class UsageChanges(Struct, frozen=True):
    """Unsaved state that changed while a module was used or trained."""

    module: str
    since: str
    """Start of the period: "since it was built", "inside the with block"."""
    changed_values: tuple[PythonChange, ...] = ()
    constancy: Mapping[str, Constancy] = {}
    """Path of unsaved state -> constancy of its value."""
    skipped: tuple[Skipped, ...] = ()


class ObjectChange(Struct, frozen=True):
    """A value of an object with a state_dict that changed, and that a load does not restore."""

    path: str
    before: str
    """Short text; "" if it was not there."""
    after: str
    is_plain_number: bool
    """Whether it is a number or text, and no tensor, array, generator or bool."""


class ObjectChanges(Struct, frozen=True):
    """What an optimizer, scheduler, sampler, ... does not save of what changed in it."""

    name: str
    """Name of its class."""
    since: str
    """Start of the period: "inside the with block"."""
    lost: tuple[ObjectChange, ...] = ()
    load_error: str = ""
    """What load_state_dict of its own state_dict() raises, "" if it loads."""
    skipped: tuple[Skipped, ...] = ()


class Verification(Struct, frozen=True):
    """Results of all levels of one run, and the data for the rules."""

    path: str
    module: str
    device: str
    levels: tuple[LevelResult, ...]
    device_mismatches: tuple[DeviceMismatch, ...] = ()
    round_trip_difference: str = ""
    """Output difference after save and load into a new instance, "" if none."""
    uninitialized_paths: tuple[str, ...] = ()
    """Paths still on meta after a meta build and `load_state_dict(assign=True)`."""
    uninitialized_buffers: Mapping[str, str] = {}
    """Key of a buffer that its framework's loader leaves uninitialized -> that loader's call."""
    broken_ties: tuple[tuple[str, ...], ...] = ()
    """Groups of tied keys that are no longer tied after `load_state_dict(assign=True)`."""
    lost_paths: tuple[str, ...] = ()
    """Paths of changed state that save and load did not restore."""
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def failed_levels(self) -> tuple[LevelResult, ...]:
        return tuple(result for result in self.levels if result.status is LevelStatus.FAILED)

    def find_level(self, level: VerificationLevel) -> LevelResult:
        """Return the result of `level`."""
        return next(result for result in self.levels if result.level is level)
