"""Faults and their edits -> the edits that are proved; each other is refused with what failed."""

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.fixing.proofs import FixTarget, TargetProofs
from ckptool.migration.codemod.attribute_fault import AttributeFault, EditPlan, RefusedFix

_MAX_TRIALS: Final = 64
"""Copies of the project in which groups of edits are tried after all of them together failed."""


class ProvedEdits(Struct, frozen=True):
    """Edits, and what a copy of the project with all of them answered."""

    plan: EditPlan
    targets: tuple[FixTarget, ...]
    """All modules, each with those of its faults that an edit repairs."""
    proofs: tuple[TargetProofs, ...]
    """One for each module."""

    @property
    def faults(self) -> list[AttributeFault]:
        """Faults that are repaired."""
        return [fault for edit in self.plan.edits for fault in edit.faults]


class EditSelection(Struct, frozen=True):
    """What edits are planned and proved with."""

    targets: Sequence[FixTarget]
    """Modules, with all of their faults."""
    plan: Callable[[Sequence[AttributeFault]], EditPlan]
    prove: Callable[[Sequence[FixTarget], EditPlan], Sequence[TargetProofs]]

    def select_edits(self, faults: Sequence[AttributeFault]) -> ProvedEdits:
        """Return the edits whose proofs do not fail, all others refused.

        If all edits together fail, those of modules without a failure are kept, and those of the
        other modules are tried in groups, which are halved as long as they fail.
        """
        all_edits = self.try_edits(faults)
        suspects = find_suspects(all_edits)
        if not suspects:
            return all_edits
        kept = [fault for fault in all_edits.faults if fault not in suspects]
        failures = [proofs.failure for proofs in all_edits.proofs if proofs.failure]
        refused = [*all_edits.plan.refused]
        groups = [suspects] if len(suspects) == 1 else _halve(suspects)
        for trial in range(_MAX_TRIALS):
            if not groups:
                break
            group = groups.pop(0)
            failure = (
                failures[0] if not trial and group == suspects else self._try_group(kept, group)
            )
            if not failure:
                kept += group
            elif len(group) == 1:
                refused.append(RefusedFix(group[0], f"with this edit, {failure}"))
            else:
                groups = [*_halve(group), *groups]
        refused += [
            RefusedFix(
                fault, f"the edits together fail, and {_MAX_TRIALS} smaller groups were tried"
            )
            for group in groups
            for fault in group
        ]
        proved = self.try_edits(kept)
        plan = replace(proved.plan, refused=(*refused, *proved.plan.refused))
        return replace(proved, plan=plan)

    def try_edits(self, faults: Sequence[AttributeFault]) -> ProvedEdits:
        """Return the edits of these faults with the proofs for every module."""
        plan = self.plan(faults)
        targets = self._select_faults(plan)
        return ProvedEdits(plan, targets, tuple(self.prove(targets, plan)))

    def _try_group(self, kept: Sequence[AttributeFault], group: Sequence[AttributeFault]) -> str:
        """Return the first failure in modules that a group of edits is about, "" for none."""
        plan = self.plan([*kept, *group])
        names = {*map(_get_identity, group)}
        concerned = [
            target
            for target in self._select_faults(plan)
            if names & {*map(_get_identity, target.faults)}
        ]
        return next((p.failure for p in self.prove(concerned, plan) if p.failure), "")

    def _select_faults(self, plan: EditPlan) -> tuple[FixTarget, ...]:
        edited = {_get_identity(fault) for edit in plan.edits for fault in edit.faults}
        return tuple(
            replace(target, faults=tuple(f for f in target.faults if _get_identity(f) in edited))
            for target in self.targets
        )


def find_suspects(proved: ProvedEdits) -> list[AttributeFault]:
    """Return the repaired faults of modules with a failed proof; [] if nothing failed."""
    names = {
        _get_identity(fault)
        for target, proofs in zip(proved.targets, proved.proofs, strict=True)
        if proofs.failure
        for fault in target.faults
    }
    return [fault for fault in proved.faults if _get_identity(fault) in names]


def _get_identity(fault: AttributeFault) -> tuple[str, str]:
    """Return what a fault of several modules is recognised by."""
    return fault.location, fault.attribute


def _halve(faults: list[AttributeFault]) -> list[list[AttributeFault]]:
    middle = len(faults) // 2
    return [faults[:middle], faults[middle:]]
