"""RuleReport: the description of one rule."""

from msgspec import Struct


class RuleReport(Struct, frozen=True, kw_only=True):
    code: str
    name: str
    level: str
    why: str
    fix: str
    message: str
    example: str
    gate: str
    """Level in `ckptool gate`, "" if it is the same."""
