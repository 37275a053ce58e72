"""Words of the command line -> the passwords and signatures in them, masked in all output."""

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Final
from urllib.parse import quote, unquote

import click

_META_KEY: Final = "ckptool.secrets"
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+[^\s'\"<>]*")
"""pathlib makes `s3:/bucket` of `s3://bucket`."""
_MIN_VALUE_CHARS: Final = 6
"""A shorter password is masked only together with its user."""
_MASK: Final = "***"


def find_secrets(words: Iterable[str]) -> frozenset[str]:
    """Return the user information and the queries of the URLs in `words`, and their values."""
    secrets: set[str] = set()
    for word in words:
        for url in _URL.findall(word):
            authority, _, query = url.partition("?")
            userinfo = re.search(r":/+([^/@]+)@", authority)
            if userinfo and (":" in userinfo[1] or url.lower().startswith("http")):
                secrets |= {userinfo[1], *_select_long([userinfo[1].partition(":")[2]])}
            query = query.partition("#")[0]
            if "=" in query:
                values = [pair.partition("=")[2] for pair in query.split("&")]
                secrets |= {query, *_select_long(values)}
    return frozenset(secrets)


def remember_secrets(ctx: click.Context, words: Iterable[str]) -> None:
    """Have the secrets in `words` masked in what is printed and written within `ctx`."""
    ctx.meta[_META_KEY] = ctx.meta.get(_META_KEY, frozenset()) | find_secrets(words)


def mask_secrets(text: str, secrets: frozenset[str] | None = None) -> str:
    """Return `text` with "***" for each secret, as it is, or as a format or a URL escapes it.

    `secrets` are those of the current context if it is None.
    """
    if secrets is None:
        ctx = click.get_current_context(silent=True)
        secrets = ctx.meta.get(_META_KEY, frozenset()) if ctx else frozenset()
    for secret in sorted(secrets, key=lambda secret: (-len(secret), secret)):
        for spelling in {
            secret, quote(secret), unquote(secret), escape(secret), json.dumps(secret)[1:-1],
        }:  # fmt: skip
            text = text.replace(spelling, _MASK)
    return text


def _select_long(values: Iterable[str]) -> list[str]:
    return [value for value in values if len(value) >= _MIN_VALUE_CHARS]
