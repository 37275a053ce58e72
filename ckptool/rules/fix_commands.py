"""Commands that fixes of several rules name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.model import Container
from ckptool.phrases import quote_shell

_RESULT_NAMES: Final = {
    Container.SAFETENSORS: "NEW.safetensors",
    Container.SHARDED_SAFETENSORS: "NEW",
    Container.SHARDED_TORCH: "NEW",
}
"""Container of the source -> name of a result in the same one; a folder has no suffix."""
_MAX_RENAMES: Final = 4
"""Renames that one command takes; of more, a user answers one after the other."""
_UNNAMED_MODULE: Final = "PACKAGE.MODULE:NAME"
"""Stands for a module that was given as an object."""


def format_migrate_command(diff: ModuleDiff, *, at: str = "", into: str = "") -> str:
    """Return the `ckptool migrate` command that writes a loadable file, as it was compared.

    Args:
        diff: the comparison whose path, place, module and constructor arguments it repeats.
        at: place of the state instead of that of `diff`; "" for that.
        into: path of a submodule instead of that of `diff`; "" for that.
    """
    checkpoint, module = diff.checkpoint, diff.module
    result = _RESULT_NAMES.get(checkpoint.container, "NEW.pth")
    words = ["ckptool", "migrate", quote_shell(str(checkpoint.path)), "-o", result, "-m"]
    words.append(quote_shell(module.target) if ":" in module.target else _UNNAMED_MODULE)
    for name, literal in module.arguments.items():
        is_mapping = name == "**"  # all items of a place of the file
        option = ["--kwargs", literal] if is_mapping else ["-k", f"{name}={literal}"]
        words += map(quote_shell, option)
    if place := at or (diff.state.at if len(checkpoint.states) > 1 else ""):
        words += ["--at", quote_shell(place)]
    if submodule := into or module.submodule:
        words += ["--into", quote_shell(submodule)]
    return " ".join(words)


def format_rename_command(diff: ModuleDiff, group: RenameGroup) -> str:
    """Return the `ckptool migrate` command that takes the rename of `group`.

    It takes the others of the file as well, if they are few: one alone leaves theirs open.
    """
    asked_groups = [other for other in diff.rename_groups if not other.is_documented]
    taken_groups = asked_groups if len(asked_groups) <= _MAX_RENAMES else [group]
    return " ".join((format_migrate_command(diff), *_format_renames(taken_groups)))


def _format_renames(groups: Sequence[RenameGroup]) -> list[str]:
    words: list[str] = []
    for group in groups:
        if not group.is_documented:  # migrate takes those by itself
            words += ["--rename", quote_shell(f"{group.old_pattern}={group.new_pattern}")]
    return words


def format_inject_command(diff: ModuleDiff, keys: Sequence[str], source: str) -> str:
    """Return the `ckptool migrate` command that injects `keys`, which the file lacks.

    Keys of one name are one pattern (`*.running_mean`), if it is that of no other missing key.
    `#*` at the end of the source stands for the key itself.
    """
    keys_by_name: dict[str, list[str]] = {}
    for key in keys:
        keys_by_name.setdefault(key.rpartition(".")[2], []).append(key)
    words = [format_migrate_command(diff)]
    if len(diff.rename_groups) <= _MAX_RENAMES:
        words += _format_renames(diff.rename_groups)
    for name, named_keys in keys_by_name.items():
        pattern = f"*.{name}" if all("." in key for key in named_keys) else f"*{name}"
        matched = {key for key in diff.missing_keys if fnmatchcase(key, pattern)}
        is_exact = len(named_keys) > 1 and matched == {*named_keys}
        for key in [pattern] if is_exact else named_keys:
            key_source = source if is_exact else source.replace("#*", f"#{key}")
            words += ["--inject", quote_shell(f"{key}={key_source}")]
    return " ".join(words)
