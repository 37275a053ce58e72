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
    comparisons = [
        ("cpu", compare_outputs(cpu_passes.new.output, cpu_passes.old.output, tolerance), is_exact)
    ]
    if _has_valid_output(device_passes.new):
        output = device_passes.new.output
        if _has_valid_output(device_passes.old):
            comparisons.append(
                (
                    device.label,
                    compare_outputs(output, device_passes.old.output, tolerance),
                    is_exact,
                )
            )
        cross_device_difference = compare_outputs(output, cpu_passes.old.output, tolerance)
        comparisons.append((f"{device.label} against cpu", cross_device_difference, False))
    return _judge_comparisons(comparisons, device, tolerance)


def _has_valid_output(forward_pass: ForwardPass | None) -> TypeGuard[ForwardPass]:
    """Whether the pass completed without an error or a device mismatch."""
    return (
        forward_pass is not None
        and forward_pass.error is None
        and not forward_pass.device_mismatches
    )


def _judge_comparisons(
    comparisons: list[tuple[str, OutputDifference, bool]],
    device: RunDevice,
    tolerance: float | None,
) -> LevelResult:
    details = [
        f"{device_label}: {_describe_match(output_difference, is_exact=is_exact)},"
        f" {output_difference.summary}"
        for device_label, output_difference, is_exact in comparisons
    ]
    skipped_leaves = comparisons[0][1].skipped_leaves
    if skipped_leaves:
        details.append(
            f"not compared, of a different type: {join_limited(skipped_leaves, 3, more='')}"
        )
    failing_comparison = next(
        (
            comparison
            for comparison in comparisons
            if not (comparison[1].is_exact if comparison[2] else comparison[1].is_close)
        ),
        None,
    )
    ran_on = device.label if len(comparisons) > 1 else "cpu"
    if failing_comparison is not None:
        suffix = "" if failing_comparison[2] else f" (tolerance {_format_tolerance(tolerance)})"
        if failing_comparison[2] and failing_comparison[1].is_close:
            suffix = (
                ": such a small difference may be rounding, for example if a refactor fuses or "
                "reorders sums: --tolerance accepts it"
            )
        reason = (
            f"on {failing_comparison[0]} {failing_comparison[1].first_difference},"
            f" {failing_comparison[1].summary}{suffix}"
        )
        return LevelResult(
            VerificationLevel.EQUALITY, LevelStatus.FAILED, reason, ran_on, tuple(details)
        )
    if not comparisons[0][1].compared_count:
        reason = "the output contains nothing that can be compared"
        return LevelResult(
            VerificationLevel.EQUALITY, LevelStatus.INCONCLUSIVE, reason, ran_on, tuple(details)
        )
    return LevelResult(VerificationLevel.EQUALITY, LevelStatus.PASSED, "", ran_on, tuple(details))


def _describe_match(output_difference: OutputDifference, *, is_exact: bool) -> str:
    if output_difference.is_exact:
        return "bit for bit"
    return "within the tolerance" if output_difference.is_close and not is_exact else "not the same"


def _format_tolerance(tolerance: float | None) -> str:
    return f"{tolerance:g}" if tolerance is not None else "of the dtype"
