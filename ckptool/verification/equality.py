"""The old module's output x the new one's -> level "equality"."""

from dataclasses import dataclass
from typing import Generic, TypeGuard, TypeVar

from ckptool.verification.facts import Level, LevelResult, Status
from ckptool.verification.outputs import Difference, difference
from ckptool.verification.passes import Pass
from ckptool.verification.running import Device

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Both(Generic[T]):
    """The old module's pass and the new one's, in one place."""

    old: T
    new: T


def equality(
    plain: Both[Pass], there: Both[Pass | None], where: Device, tolerance: float | None
) -> LevelResult:
    """Compare on the CPU bit for bit, on the device bit for bit, and across within a tolerance.

    A tolerance that was asked for holds everywhere: a refactor that fuses or reorders sums rounds
    otherwise.

    Where the old module cannot run on the device, which may be why there is a new one, its output
    on the CPU stands for it.
    """
    for name, one in (("old", plain.old), ("new", plain.new)):
        if one.error is not None:
            reason = f"the {name} module's pass on the CPU raised {one.error}"
            return LevelResult(Level.EQUALITY, Status.INCONCLUSIVE, reason, "cpu")
    exact = tolerance is None
    found = [("cpu", difference(plain.new.output, plain.old.output, tolerance), exact)]
    if _went_through(there.new):
        output = there.new.output
        if _went_through(there.old):
            found.append((where.words, difference(output, there.old.output, tolerance), exact))
        across = difference(output, plain.old.output, tolerance)
        found.append((f"{where.words} against cpu", across, False))
    return _judged(found, where, tolerance)


def _went_through(one: Pass | None) -> TypeGuard[Pass]:
    """Whether it has an output that a real device would have given as well."""
    return one is not None and one.error is None and not one.clashes


def _judged(
    found: list[tuple[str, Difference, bool]], where: Device, tolerance: float | None
) -> LevelResult:
    details = [f"{place}: {_how(one, exact=exact)}, {one.words}" for place, one, exact in found]
    left_out = found[0][1].left_out
    if left_out:
        details.append(f"not compared, of another kind: {', '.join(left_out[:3])}")
    wrong = next((o for o in found if not (o[1].exact if o[2] else o[1].close)), None)
    ran = where.words if len(found) > 1 else "cpu"
    if wrong is not None:
        within = "" if wrong[2] else f" (tolerance {_tolerance(tolerance)})"
        if wrong[2] and wrong[1].close:
            within = (
                ": so little may be rounding, as where a refactor fuses or reorders sums: "
                "--tolerance accepts it"
            )
        reason = f"on {wrong[0]} {wrong[1].first}, {wrong[1].words}{within}"
        return LevelResult(Level.EQUALITY, Status.FAILED, reason, ran, tuple(details))
    if not found[0][1].compared:
        reason = "the output has nothing that can be compared"
        return LevelResult(Level.EQUALITY, Status.INCONCLUSIVE, reason, ran, tuple(details))
    return LevelResult(Level.EQUALITY, Status.PASSED, "", ran, tuple(details))


def _how(one: Difference, *, exact: bool) -> str:
    if one.exact:
        return "bit for bit"
    return "within the tolerance" if one.close and not exact else "not the same"


def _tolerance(tolerance: float | None) -> str:
    return f"{tolerance:g}" if tolerance is not None else "of the dtype"
