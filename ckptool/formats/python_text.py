"""Python text that somebody else wrote, parsed without the warnings meant for its author.

A backslash before a letter that needs none is a warning of Python's parser. It would go to our
standard error, and be an exception where the caller makes errors of warnings.
"""

import ast
import warnings
from codecs import escape_decode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def parse_module(text: str | bytes) -> ast.Module:
    """Parse the source of a module; raises what ast.parse() raises."""
    with _ignore_syntax_warnings():
        return ast.parse(text)


def parse_single_expression(text: str) -> ast.expr:
    """Parse one expression; raises what ast.parse() raises."""
    with _ignore_syntax_warnings():
        return ast.parse(text.strip(), mode="eval").body


def evaluate_literal(text: str) -> Any:
    """Return the value of a literal; raises what ast.literal_eval() raises."""
    with _ignore_syntax_warnings():
        return ast.literal_eval(text)


def decode_escapes(text: bytes) -> bytes:
    """Return the bytes that a bytes literal with this text between its quotes stands for.

    Raises:
        ValueError: an escape sequence is incomplete.
    """
    if b"\\" not in text:
        return text
    with _ignore_syntax_warnings():
        return escape_decode(text)[0]


@contextmanager
def _ignore_syntax_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
