"""InitReport: the result of `init`."""

from msgspec import Struct

from ckptool.reports.common import Report


class InitModelReport(Struct, frozen=True, kw_only=True):
    """One checkpoint, and the module that loads it."""

    path: str
    """Path relative to the configuration."""
    module: str
    """Import target, "" if no class fits."""
    outcome: str
    """"loads strictly", "assumed: 9 of 12 keys", or why there is none."""


class InitReport(Report, frozen=True, kw_only=True):
    verdict: str
    path: str
    """The configuration file."""
    text: str
    """What was, or with --dry-run would be, added to it."""
    models: tuple[InitModelReport, ...]
    notes: tuple[str, ...] = ()
