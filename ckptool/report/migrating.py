"""What a migration did."""

from msgspec import Struct

from ckptool.report.parts import Report


class StepReport(Struct, frozen=True, kw_only=True):
    """One operation of a plan."""

    op: str
    before: str
    after: str
    why: str
    source: str = ""
    """Where an injected value comes from."""
    loses: str = ""
    """What the result no longer has."""


class CheckReport(Struct, frozen=True, kw_only=True):
    name: str
    result: str
    """"passed" or "skipped"; a check that fails is an error, and nothing is written."""
    reason: str


class MigrateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"migrated ...", "converted ...", "nothing to do ..." or "planned (dry run) ..."."""
    source: str
    source_container: str
    target: str
    """"" where nothing was written."""
    target_container: str
    at: str
    module: str
    """"" without one."""
    steps: tuple[StepReport, ...]
    checks: tuple[CheckReport, ...]
    notes: tuple[str, ...]
    source_digest: str
    """Of the state's content, whatever the container; "" where nothing was written."""
    result_digest: str
