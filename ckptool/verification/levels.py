"""VerificationTarget x RunDevice x Inputs -> Verification: run all levels in order."""

from typing import Final

from msgspec.structs import replace
from torch import nn

from ckptool.compare import Loading
from ckptool.model import Kind, Skipped
from ckptool.verification import cpu, load, pickled, running
from ckptool.verification import inputs as words
from ckptool.verification.equality import Both, equality
from ckptool.verification.facts import Clash, Level, LevelResult, Status, Verification
from ckptool.verification.load import Subject
from ckptool.verification.passes import Inputs
from ckptool.verification.running import Device, Ran
from ckptool.verification.sides import Side
from ckptool.verification.survival import round_trip, survival

_SHOWN: Final = 3
_UNPROVED: Final = Skipped(
    "a real CUDA device",
    "a simulated one proves where tensors are; not CUDA's arithmetic, kernels, memory and autocast",
)


def verify(
    new: Side,
    device: Device,
    inputs: Inputs | None,
    old: Side | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run all levels; a level that cannot be run is skipped with a reason, never passed.

    Raises:
        ModuleError: the module cannot be built.
        ReadError: tensors of a checkpoint cannot be read.
        UsageError: forward does not accept `inputs`.
    """
    one = load.subject(new.maker, new.loading)
    loaded, meta = load.strictly(one), load.on_meta(one)
    usable, reason = _usable(one, inputs)
    ran = _ran(one, device, usable) if usable else None
    moved = ran.levels if ran else running.without_inputs(device, reason, _staying(new.loading))
    same = _equality(old, ran, device, usable, tolerance)
    trip, apart = round_trip(one, usable, reason)
    survived, lost = survival(one, new.loading.module)
    return Verification(
        path=str(new.loading.checkpoint.path),
        module=new.maker.target,
        device=device.words,
        levels=(loaded, *moved, same, trip, survived),
        clashes=tuple(_assigned(c, new.loading) for c in ran.clashes) if ran else (),
        round_trip=apart,
        on_meta=meta.without_value,
        untied=meta.untied,
        lost=lost,
        notes=(f"input: {usable.source}",) if usable else (),
        skipped=(*new.loading.checkpoint.skipped, *meta.skipped, *_not_proved(device)),
    )


def _usable(one: Subject, inputs: Inputs | None) -> tuple[Inputs | None, str]:
    """Return the inputs for forward and "", or None and why there are none."""
    module = one.make()
    given = inputs if inputs is not None else words.asked(module)
    if isinstance(given, str):
        return None, given
    if inputs is not None:
        words.check(module, given)
    reason = words.unfitting(module, given)
    return (None, reason) if reason else (given, "")


def _ran(one: Subject, device: Device, inputs: Inputs) -> Ran:
    return running.run(device, one.make, inputs)


def _equality(
    old: Side | None,
    ran: Ran | None,
    device: Device,
    inputs: Inputs | None,
    tolerance: float | None,
) -> LevelResult:
    if old is None:
        return LevelResult(Level.EQUALITY, Status.SKIPPED, "nothing to compare with: no --against")
    if ran is None or inputs is None:
        return LevelResult(Level.EQUALITY, Status.SKIPPED, "there is no input to run them with")
    before = load.subject(old.maker, old.loading)
    if not old.loading.strict:
        reason = "the old checkpoint does not load into the old module: name that with --old-module"
        return LevelResult(Level.EQUALITY, Status.INCONCLUSIVE, reason)

    def made() -> nn.Module:
        module = before.make()
        pickled.put_back(module, old.beside)
        return module

    module = made()
    kept = pickled.places(module, old.beside)
    plain = cpu.run(module, inputs)
    there = running.on(device, made(), inputs) if ran.device else None
    told = equality(Both(plain, ran.cpu), Both(there, ran.device), device, tolerance)
    return _with_origins(told, old, kept)


def _with_origins(told: LevelResult, old: Side, kept: tuple[str, ...]) -> LevelResult:
    """Add the origin of the old module's unsaved tensors, which affect its outputs."""
    if kept:
        words = f"the old module has what was pickled beside its state_dict: {_few(kept)}"
        told = replace(told, details=(*told.details, words))
    lost = tuple(key for key in old.loading.module.unsaved if key not in kept)
    if told.status is Status.FAILED and lost:
        words = (
            f"the old file has no value of {_few(lost)}, and the old module's constructor made it: "
            "a whole pickled module would have what training made of it"
        )
        told = replace(told, reason=f"{told.reason}; {words}")
    return told


def _few(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(f"`{key}`" for key in keys[:_SHOWN]) + more


def _assigned(clash: Clash, loading: Loading) -> Clash:
    held = loading.module.held.get(clash.attribute)
    return replace(clash, assigned=held.where) if held else clash


def _staying(loading: Loading) -> tuple[str, ...]:
    held = loading.module.unsaved.values()
    return tuple(one.key for one in held if not one.follows_to and one.kind is not Kind.ARRAY)


def _not_proved(device: Device) -> tuple[Skipped, ...]:
    return (_UNPROVED,) if device.kind == "simulated" else ()
