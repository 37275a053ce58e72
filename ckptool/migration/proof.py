"""Verification of a migrated file -> CheckResult: passed or skipped; failure raises."""

from typing import Final

from ckptool.errors import WriteError
from ckptool.migration.verify import Check, Written
from ckptool.verification.facts import Level, Status, Verification

_ASKED: Final = (Level.LOAD, Level.DEVICE, Level.FORWARD, Level.EQUALITY)
"""Levels about this file; the save round trip of the module is left to `ckptool verify`."""


def prove(written: Written, done: Verification) -> Check:
    """Judge the levels that a migrated file must pass.

    Raises:
        WriteError: a level failed.
    """
    found = [done.level(level) for level in _ASKED]
    for one in found:
        if one.status is Status.FAILED:
            reason = " ".join((one.reason or ", ".join(one.details)).split())
            message = f"{written.target}: not written: verification fails at {one.level}: {reason}"
            raise WriteError(message)
    passed = [str(one.level) for one in found if one.status is Status.PASSED]
    seen = [detail for one in found if one.level is Level.EQUALITY for detail in one.details]
    open_ = [one for one in found if one.status is Status.INCONCLUSIVE]
    if Level.FORWARD not in passed or open_:
        why = next((one.reason for one in (*open_, *found) if one.reason), "it was not run")
        return Check("forward", "skipped", why)
    return Check("forward", "passed", "; ".join([f"{', '.join(passed)} on {done.device}", *seen]))
