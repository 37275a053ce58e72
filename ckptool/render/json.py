"""Report -> JSON for machines; nothing is folded, truncated or coloured."""

import json
import re
from typing import TYPE_CHECKING

import msgspec

from ckptool.render import RenderOptions

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport


def render(report: "AnyReport", options: RenderOptions) -> str:  # noqa: ARG001 (machines have one style)
    try:
        text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
    except UnicodeEncodeError:
        # A key with a lone surrogate, which a pickle can hold and UTF-8 cannot.
        return json.dumps(msgspec.to_builtins(report), indent=2)
    return text if text.isascii() else _NON_ASCII.sub(_escape_match, text)


_NON_ASCII = re.compile(r"[^\x00-\x7e]")


def _escape_match(match: re.Match[str]) -> str:
    """Escape as JSON, so that no raw character of a file reaches a terminal."""
    return json.dumps(match[0])[1:-1]
