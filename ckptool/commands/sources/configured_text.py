"""ModelMatches -> the `[[models]]` of a configuration, as TOML."""

import json
import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from ckptool.commands.sources.module_matcher import ModelMatch


def format_models(matches: list[ModelMatch], *, is_pyproject: bool) -> str:
    """Return an entry for each module, with a comment where it does not load strictly; "" for none.

    The files of one folder and suffix share an entry if one module loads them all.
    """
    table = "[[tool.ckptool.models]]" if is_pyproject else "[[models]]"
    blocks: list[str] = []
    for path, match in _group_matches(matches):
        lines = [] if match.outcome == "loads strictly" else [f"# {match.outcome}"]
        lines += [table, f"path = {_format_value(path)}", f"module = {_format_value(match.target)}"]
        if match.configured_kwargs:
            lines.append(f"kwargs = {_format_value(match.configured_kwargs)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _group_matches(matches: list[ModelMatch]) -> list[tuple[str, ModelMatch]]:
    """Return (glob, match): one glob for a folder whose files of one suffix fit one module."""

    def get_glob(match: ModelMatch) -> str:
        path = Path(match.path)
        return (path.parent / f"*{path.suffix}").as_posix() if path.suffix else match.path

    result: list[tuple[str, ModelMatch]] = []
    for glob, group in groupby(sorted(matches, key=lambda m: (get_glob(m), m.path)), get_glob):
        members = list(group)
        shared = _share_entry(members)
        if shared is not None:
            result.append((glob, shared))
        else:
            result += [(member.path, member) for member in members if member.target]
    return sorted(result, key=lambda pair: ("*" in pair[0], pair[0]))  # the first match counts


def _share_entry(members: list[ModelMatch]) -> ModelMatch | None:
    """Return the entry that is right for all of several matches; None if there is none."""
    first = members[0]
    if len(members) < 2 or not first.target or any(m.target != first.target for m in members):
        return None
    if all(member.configured_kwargs == first.configured_kwargs for member in members):
        return first
    is_one_place = first.place and all(member.place == first.place for member in members)
    return first.take_from_place() if is_one_place else None


def _format_value(value: object) -> str:
    """Return a value that `to_toml_value` leaves as it is."""
    if isinstance(value, Mapping):
        items = (f"{_format_key(str(k))} = {_format_value(v)}" for k, v in value.items())
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    if isinstance(value, str | bool | int):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key, re.ASCII) else json.dumps(key)
