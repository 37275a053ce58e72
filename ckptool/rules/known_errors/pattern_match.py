"""Result of the search for one cause of missing and unexpected keys."""

from collections.abc import Collection, Mapping

from msgspec import Struct

from ckptool.rules.known_errors.known_error import Certainty


class PatternMatch(Struct, frozen=True):
    """Keys that a pattern explains, and the facts for its sentences."""

    keys: Collection[str]
    facts: Mapping[str, str] = {}
    certainty: Certainty | None = None
    """None: that of the pattern."""
