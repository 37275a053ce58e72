"""Forward passes of the old and the new module -> LevelResult of level "equality"."""

from dataclasses import dataclass
from typing import Generic, TypeGuard, TypeVar

from ckptool.verification.facts import Level, LevelResult, Status
from ckptool.verification.outputs import Difference, difference
from ckptool.verification.passes import Pass
from ckptool.verification.running import Device

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Both(Generic[T]):
    """Forward passes of the old and the new module on one device."""

    old: T
    new: T


def equality(
    plain: Both[Pass], there: Both[Pass | None], where: Device, tolerance: float | None
) -> LevelResult:
    """Compare outputs: bit for bit on the CPU and on the device, within a tolerance across both.

    A `tolerance` applies to all comparisons: refactors that fuse or reorder sums round
    differently. If the old module cannot run on the device, only its CPU output is compared.
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
    """Whether the pass completed without an error or a device mismatch."""
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
