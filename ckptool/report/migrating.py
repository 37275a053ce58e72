"""Report of `migrate`."""

from msgspec import Struct

from ckptool.report.parts import Report


class StepReport(Struct, frozen=True, kw_only=True):
    """One operation of a plan."""

    op: str
    before: str
    after: str
    why: str
    source: str = ""
    """Source of an injected value, else ""."""
    loses: str = ""
    """What the operation removes from the result, else ""."""


class CheckReport(Struct, frozen=True, kw_only=True):
    name: str
    result: str
    """"passed" or "skipped"; a failed check raises an error and nothing is written."""
    reason: str


class MigrateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"migrated ...", "converted ...", "nothing to do ..." or "planned (dry run) ..."."""
    source: str
    source_container: str
    target: str
    """"" if nothing was written."""
    target_container: str
    at: str
    module: str
    """"" without one."""
    steps: tuple[StepReport, ...]
    checks: tuple[CheckReport, ...]
    notes: tuple[str, ...]
    source_digest: str
    """Digest of the state's content, independent of the container; "" if nothing was written."""
    result_digest: str
