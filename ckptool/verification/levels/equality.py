"""Forward passes of the old and the new module -> LevelResult of level "equality"."""

from dataclasses import dataclass
from typing import Generic, TypeGuard, TypeVar

from ckptool.phrases import join_limited
from ckptool.verification.forward_pass import ForwardPass
from ckptool.verification.levels.device_and_forward import RunDevice
from ckptool.verification.output_diff import OutputDifference, compare_outputs
from ckptool.verification.result import LevelResult, LevelStatus, VerificationLevel

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class OldNewPair(Generic[T]):
    """Forward passes of the old and the new module on one device."""

    old: T
    new: T


def check_equality(
    cpu_passes: OldNewPair[ForwardPass],
    device_passes: OldNewPair[ForwardPass | None],
    device: RunDevice,
    tolerance: float | None,
) -> LevelResult:
    """Compare outputs: bit for bit on the CPU and on the device, within a tolerance across both.

    A `tolerance` applies to all comparisons: refactors that fuse or reorder sums round
    differently. If the old module cannot run on the device, only its CPU output is compared.
    """
    for name, forward_pass in (("old", cpu_passes.old), ("new", cpu_passes.new)):
        if forward_pass.error is not None:
            reason = f"the {name} module's pass on the CPU raised {forward_pass.error}"
            return LevelResult(VerificationLevel.EQUALITY, LevelStatus.INCONCLUSIVE, reason, "cpu")
    is_exact = tolerance is None
    old_output = cpu_passes.old.output
    difference = compare_outputs(cpu_passes.new.output, old_output, tolerance)
    comparisons = [_Comparison("cpu", difference, is_exact)]
    if _has_valid_output(device_passes.new):
        output = device_passes.new.output
        if _has_valid_output(device_passes.old):
            difference = compare_outputs(output, device_passes.old.output, tolerance)
            comparisons.append(_Comparison(device.label, difference, is_exact))
        difference = compare_outputs(output, old_output, tolerance)
        comparisons.append(_Comparison(f"{device.label} against cpu", difference, is_exact=False))
    return _judge_comparisons(comparisons, device, tolerance)


@dataclass(frozen=True, slots=True, eq=False)
class _Comparison:
    """Outputs of the old and the new module, compared."""

    place: str
    """Where they were computed: "cpu", "cuda:0", "cuda:0 against cpu"."""
    difference: OutputDifference
    is_exact: bool
    """Whether they have to be equal bit for bit; else within the tolerance."""

    @property
    def has_passed(self) -> bool:
        return self.difference.is_exact if self.is_exact else self.difference.is_close

    @property
    def description(self) -> str:
        """Place, result and figures, as one clause."""
        match = "bit for bit" if self.difference.is_exact else "not the same"
        if not (self.is_exact or self.difference.is_exact) and self.difference.is_close:
            match = "within the tolerance"
        return f"{self.place}: {match}, {self.difference.summary}"


def _has_valid_output(forward_pass: ForwardPass | None) -> TypeGuard[ForwardPass]:
    """Whether the pass completed without an error or a device mismatch."""
    return (
        forward_pass is not None
        and forward_pass.error is None
        and not forward_pass.device_mismatches
    )


def _judge_comparisons(
    comparisons: list[_Comparison], device: RunDevice, tolerance: float | None
) -> LevelResult:
    """Return FAILED for the first comparison that differs, PASSED if none does.

    `comparisons` begin with that of the CPU, which says how much there is to compare.
    """
    on_cpu = comparisons[0].difference
    details = [comparison.description for comparison in comparisons]
    if on_cpu.skipped_leaves:
        skipped = join_limited(on_cpu.skipped_leaves, 3, more="")
        details.append(f"not compared, of a different type: {skipped}")
    status, reason = LevelStatus.PASSED, ""
    failing = next((comparison for comparison in comparisons if not comparison.has_passed), None)
    if failing is not None:
        status, reason = LevelStatus.FAILED, _explain_failure(failing, tolerance)
    elif not on_cpu.compared_count:
        status = LevelStatus.INCONCLUSIVE
        reason = "the output contains nothing that can be compared"
    ran_on = device.label if len(comparisons) > 1 else "cpu"
    return LevelResult(VerificationLevel.EQUALITY, status, reason, ran_on, tuple(details))


def _explain_failure(failing: _Comparison, tolerance: float | None) -> str:
    difference = failing.difference
    suffix = "" if failing.is_exact else f" (tolerance {_format_tolerance(tolerance)})"
    if failing.is_exact and difference.is_close:
        suffix = (
            ": such a small difference may be rounding, for example if a refactor fuses or "
            "reorders sums: --tolerance accepts it"
        )
    return f"on {failing.place} {difference.first_difference}, {difference.summary}{suffix}"


def _format_tolerance(tolerance: float | None) -> str:
    return f"{tolerance:g}" if tolerance is not None else "of the dtype"
