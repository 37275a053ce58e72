"""Warnings of user code -> a notice with their number and the first of them."""

from typing import Final

from ckptool.commands.worker.messages import WarningNotice
from ckptool.modules.assignment_locations import format_location
from ckptool.modules.user_code import read_message
from ckptool.phrases import summarize_message

_MAX_KEPT: Final = 100
"""Warnings of one request that are kept as text."""


class UserWarnings:
    """The warnings since the last notice, each text once in the whole process."""

    def __init__(self) -> None:
        self._known_texts: set[str] = set()
        self._texts: list[str] = []
        self._count = 0

    def add_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,  # noqa: ARG002 (the signature of warnings.showwarning)
        line: str | None = None,  # noqa: ARG002
    ) -> None:
        """Take a warning: this replaces `warnings.showwarning`."""
        words = read_message(message) if isinstance(message, Warning) else message
        place = format_location(filename, lineno)
        text = f"{category.__name__}: {summarize_message(words)} ({place})"
        if text in self._known_texts:
            return
        self._count += 1
        if len(self._texts) < _MAX_KEPT:
            self._known_texts.add(text)
            self._texts.append(text)

    def take_notice(self) -> WarningNotice | None:
        """Return a notice of the warnings since the last one; None if there are none."""
        if not self._count:
            return None
        notice = WarningNotice(tuple(self._texts), self._count)
        self._texts, self._count = [], 0
        return notice
