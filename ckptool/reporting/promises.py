"""GateEvidence -> PromiseReport."""

from collections.abc import Iterator

from msgspec import Struct

from ckptool.contract import ContractDiff, FixtureResult
from ckptool.model import Skipped
from ckptool.report import PromiseReport
from ckptool.verification.facts import GoldenReplay


class GateEvidence(Struct, frozen=True):
    """Compatibility results of a release (subjects of the rules) and the skipped checks."""

    contract_diff: ContractDiff | None = None
    fixtures: tuple[FixtureResult, ...] = ()
    replays: tuple[GoldenReplay, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def subjects(self) -> tuple[object, ...]:
        contract_diffs = () if self.contract_diff is None else (self.contract_diff,)
        return (*contract_diffs, *self.fixtures, *self.replays)


def build_promise_reports(evidence: GateEvidence) -> tuple[PromiseReport, ...]:
    """Build a report for each compatibility requirement, kept or not."""
    return tuple(_iter_promise_reports(evidence))


def _iter_promise_reports(evidence: GateEvidence) -> Iterator[PromiseReport]:
    if evidence.contract_diff is not None:
        compatibility = str(evidence.contract_diff.compatibility)
        yield PromiseReport(
            what="against", name=evidence.contract_diff.old.name, result=compatibility
        )
    for fixture in evidence.fixtures:
        route = fixture.route or "no migration path"
        yield PromiseReport(what="fixture", name=fixture.path, result=route, reason=fixture.reason)
    for replay in evidence.replays:
        results = [f"{drift.device}: drifts" for drift in replay.output_drifts]
        results += [f"{text.partition(':')[0]}: the same" for text in replay.matching_devices]
        descriptions = [f"{drift.device}: {drift.description}" for drift in replay.output_drifts]
        reason = "; ".join((*descriptions, *replay.matching_devices))
        if results:
            yield PromiseReport(
                what="golden", name=replay.golden, result=", ".join(results), reason=reason
            )
