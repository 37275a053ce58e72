"""GateEvidence -> PromiseReport."""

from collections.abc import Iterator

from msgspec import Struct

from ckptool.contract import Fixture, Holding
from ckptool.model import Skipped
from ckptool.report import PromiseReport
from ckptool.verification.facts import Replay


class HeldTo(Struct, frozen=True):
    """Compatibility results of a release (subjects of the rules) and the skipped checks."""

    holding: Holding | None = None
    fixtures: tuple[Fixture, ...] = ()
    replays: tuple[Replay, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def subjects(self) -> tuple[object, ...]:
        holding = () if self.holding is None else (self.holding,)
        return (*holding, *self.fixtures, *self.replays)


def promise_reports(held: HeldTo) -> tuple[PromiseReport, ...]:
    """Build a report for each compatibility requirement, kept or not."""
    return tuple(_reports(held))


def _reports(held: HeldTo) -> Iterator[PromiseReport]:
    if held.holding is not None:
        standing = str(held.holding.standing)
        yield PromiseReport(what="against", name=held.holding.old.name, result=standing)
    for one in held.fixtures:
        way = one.way or "no migration path"
        yield PromiseReport(what="fixture", name=one.path, result=way, reason=one.reason)
    for replay in held.replays:
        said = [f"{drift.device}: drifts" for drift in replay.drifts]
        said += [f"{words.partition(':')[0]}: the same" for words in replay.passed]
        how = [f"{drift.device}: {drift.how}" for drift in replay.drifts]
        reason = "; ".join((*how, *replay.passed))
        if said:
            yield PromiseReport(
                what="golden", name=replay.golden, result=", ".join(said), reason=reason
            )
