"""What was not checked, and why."""

from msgspec import Struct


class Skipped(Struct, frozen=True, gc=False):
    """A check that was not made, with the reason: an unreported check never counts as passed."""

    what: str
    reason: str
