"""Commands that fixes of several rules name."""

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Final

from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.contracts.contract import Contract, ContractOrigin
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.compare.states import is_rank_part, list_placeholders
from ckptool.config import GIVEN_WORDS
from ckptool.model import Checkpoint, Container
from ckptool.phrases import protect_path, quote_path, quote_shell

_FOLDERS: Final = frozenset({Container.SHARDED_SAFETENSORS, Container.SHARDED_TORCH})
"""Containers that are folders: a result in the same one has no suffix."""
_TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".bin"})
"""Suffixes that a result of torch.save keeps."""
_WEB_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)
_INPUT_OPTIONS: Final = frozenset({"--input", "--inputs"})
"""Options that a command that does not run the module does not take."""
_MODULE_OPTIONS: Final = _INPUT_OPTIONS | {"-I", "--loader", "--no-file-kwargs"}
"""Options that a command without a module does not take."""
_MAX_RENAMES: Final = 4
"""Renames that one command takes; of more, a user answers one after the other."""
DONOR_SOURCE: Final = "file:DONOR#*"
"""Source of an injection: the same key of another checkpoint, whose path replaces DONOR."""
_MAX_INJECTIONS: Final = 8
"""Injections that one command lists; of more, one pattern takes all missing keys."""
UNNAMED_MODULE: Final = "PACKAGE.MODULE:NAME"
"""Stands for a module that was given as an object."""


def advise_ignoring(*codes: str) -> str:
    """Return the last sentence of a fix, with a space before it: how to go on regardless."""
    return f" If this is intended, {' '.join(f'--ignore {code}' for code in codes)}."


def format_migrate_command(diff: ModuleDiff, *, at: str = "", into: str = "") -> str:
    """Return the `ckptool migrate` command that writes a loadable file, as it was compared.

    Args:
        diff: the comparison whose path, place, module and constructor arguments it repeats.
        at: place of the state instead of that of `diff`; "" for that.
        into: path of a submodule instead of that of `diff`; "" for that.
    """
    checkpoint, module = diff.checkpoint, diff.module
    words = ["ckptool", "migrate", *_list_migrated_words(diff)]
    for name, literal in module.arguments.items():
        is_mapping = name == "**"  # all items of a place of the file
        option = ["--kwargs", literal] if is_mapping else ["-k", f"{name}={literal}"]
        words += map(quote_shell, option)
    if place := at or (diff.state.at if len(checkpoint.states) > 1 else ""):
        words += ["--at", quote_shell(place)]
    if submodule := into or module.submodule:
        words += ["--into", quote_shell(submodule)]
    return " ".join((*words, *map(quote_shell, GIVEN_WORDS.get().shared)))


def _list_migrated_words(diff: ModuleDiff) -> list[str]:
    """Return the words that name what is migrated, the result, and the module.

    A framework's folder names its module itself.
    """
    checkpoint, module = diff.checkpoint, diff.module
    if module.folder:
        stem = PurePosixPath(module.folder.replace(os.sep, "/")).name.lstrip("-.") or "model"
        return [quote_path(module.folder), "-o", quote_shell(f"{stem}-migrated")]
    name = quote_shell(module.target) if ":" in module.target else UNNAMED_MODULE
    return [
        quote_path(str(checkpoint.path)),
        "-o",
        quote_shell(name_result(checkpoint)),
        "-m",
        name,
    ]


def format_convert_command(checkpoint: Checkpoint, *options: str, suffix: str = "") -> str:
    """Return the `ckptool convert` command that writes the file again, without a module.

    Args:
        checkpoint: the file.
        options: words of further options.
        suffix: suffix of the result; "" keeps the container.
    """
    source, result = (
        protect_path(str(checkpoint.path)),
        name_result(checkpoint, suffix, "converted"),
    )
    words = ("ckptool", "convert", source, "-o", result, *options, *_iter_given_without_module())
    return " ".join(map(quote_shell, words))


def advise_conversion(checkpoint: Checkpoint, purpose: str, *options: str, suffix: str = "") -> str:
    """Return " To `purpose`: COMMAND", the conversion of a file; "" if it cannot be converted.

    `suffix` is that of the result; "" keeps the container.
    """
    if checkpoint.damage or not _is_convertible(checkpoint):
        return ""
    return f" To {purpose}: {format_convert_command(checkpoint, *options, suffix=suffix)}"


def _is_convertible(checkpoint: Checkpoint) -> bool:
    """Whether it has tensors, and all of them are in the file, and of plain classes."""
    tensors = [tensor for state in checkpoint.states for tensor in state.tensors.values()]
    are_plain = all(
        not (tensor.is_on_meta or is_rank_part(tensor) or tensor.layout == "wrapper")
        for tensor in tensors
    )
    are_whole = not any(state.is_packed or list_placeholders(state) for state in checkpoint.states)
    return bool(tensors) and are_plain and are_whole


def _iter_given_without_module() -> Iterator[str]:
    """Yield the given options, and the values of those that take one, that need no module."""
    return _iter_given_words(_MODULE_OPTIONS)


def _iter_given_words(left_out: frozenset[str]) -> Iterator[str]:
    """Yield the given options but some, and the values of those that take one."""
    words = iter(GIVEN_WORDS.get().shared)
    for word in words:
        values = [] if word in {"--no-config", "--no-file-kwargs"} else [next(words)]
        if word not in left_out:
            yield from (word, *values)


def format_chain_command(verb: str, path: str, result: str, options: Sequence[str]) -> str:
    """Return the `ckptool upgrade` or `ckptool downgrade` of a file; `result` "" writes none."""
    output = ("-o", protect_path(result)) if result else ()
    words = (
        "ckptool",
        verb,
        protect_path(path),
        *output,
        *options,
        *_iter_given_words(_INPUT_OPTIONS),
    )
    return " ".join(map(quote_shell, words))


def name_result(checkpoint: Checkpoint, suffix: str = "", participle: str = "migrated") -> str:
    """Return the name of a file, here, that a fix writes: "model-migrated.pth".

    `suffix` "" is that of the file itself, where it fits the container of the result.
    """
    path = PurePosixPath(_WEB_QUERY.sub("", str(checkpoint.path).replace(os.sep, "/")))
    stem, own_suffix = (path.stem, path.suffix) if path.suffix else (path.name, "")
    if not suffix:
        if checkpoint.container is Container.SAFETENSORS:
            suffix = ".safetensors"
        elif checkpoint.container not in _FOLDERS:
            suffix = own_suffix if own_suffix.lower() in _TORCH_SUFFIXES else ".pth"
        elif own_suffix == ".json":
            stem = path.parent.name or "model"
    name = stem.lstrip("-.") or "model"
    return f"{name}-{participle}{suffix}"


def format_rename_command(diff: ModuleDiff, group: RenameGroup) -> str:
    """Return the `ckptool migrate` command that takes the rename of `group`.

    It takes the others of the file as well, if they are few: one alone leaves theirs open.
    """
    asked_groups = [other for other in diff.rename_groups if not other.is_documented]
    taken_groups = asked_groups if len(asked_groups) <= _MAX_RENAMES else [group]
    return " ".join((format_migrate_command(diff), *_format_renames(taken_groups)))


def format_file_rename_command(diff: CheckpointDiff, group: RenameGroup) -> str:
    """Return the `ckptool convert` command that gives the old file the names of the new one.

    It takes all groups of the two files, if they are few.
    """
    groups = diff.rename_groups if len(diff.rename_groups) <= _MAX_RENAMES else (group,)
    place = diff.places[0]
    at = ("--at", place) if len(diff.old.states) > 1 and place != "*" else ()
    renames = (f"{taken.old_pattern}={taken.new_pattern}" for taken in groups)
    options = (word for rename in renames for word in ("--rename", rename))
    return format_convert_command(diff.old, *at, *options)


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
    if source == DONOR_SOURCE and len(keys) > _MAX_INJECTIONS:
        keys_by_name = {}
        words += ["--inject", quote_shell(f"*={source}")]
    for name, named_keys in keys_by_name.items():
        pattern = f"*.{name}" if all("." in key for key in named_keys) else f"*{name}"
        matched = {key for key in diff.missing_keys if fnmatchcase(key, pattern)}
        is_exact = len(named_keys) > 1 and matched == {*named_keys}
        for key in [pattern] if is_exact else named_keys:
            key_source = source if is_exact else source.replace("#*", f"#{key}")
            words += ["--inject", quote_shell(f"{key}={key_source}")]
    return " ".join(words)


def format_audit_command(module: str) -> str:
    """Return the `ckptool audit` command of a module, with the arguments that were given."""
    return _format_module_command(("ckptool", "audit"), module)


def format_fix_command(module: str) -> str:
    """Return the `ckptool fix` command of the module that the command line or a file names.

    "" where the library was called, the module is no import path, or its arguments are from a
    checkpoint: `fix` reads none.
    """
    words = GIVEN_WORDS.get().command
    from_file = any(re.search("(^|[=k])@", word) for word in _iter_given_arguments())
    if not words or from_file or not re.fullmatch(r"[^\s<>]+:[\w.]+", module):
        return ""
    if not any(word.startswith(("-m", "--module")) for word in words):
        return " ".join(map(quote_shell, ("ckptool", "fix", *GIVEN_WORDS.get().shared)))
    return _format_module_command(("ckptool", "fix"), module)


def format_golden_command(path: str, module: str, golden: str) -> str:
    """Return the `ckptool lock` command that records the outputs of a golden file again."""
    shared = GIVEN_WORDS.get().shared
    inputs = () if {"--input", "--inputs"} & {*shared} else ("--inputs", "PACKAGE.MODULE:FUNCTION")
    options = (*inputs, "--golden", protect_path(golden), "--force")
    return _format_module_command(("ckptool", "lock", protect_path(path)), module, options)


def format_plan_command(path: str, module: str) -> tuple[str, str]:
    """Return the command that writes the plan of a migration as far as it is known, and its file.

    The plan is then completed by hand and given to `ckptool migrate --plan`.
    """
    plan = f"{PurePosixPath(path.replace(os.sep, '/')).stem.lstrip('-.') or 'model'}-plan.toml"
    options = ("--dry-run", "--save-plan", plan)
    return _format_module_command(
        ("ckptool", "migrate", protect_path(path)), module, options
    ), quote_shell(plan)


def _format_module_command(words: Sequence[str], module: str, options: Sequence[str] = ()) -> str:
    name = module if ":" in module else UNNAMED_MODULE
    return " ".join(map(quote_shell, (*words, "-m", name, *list_given_arguments(), *options)))


def list_given_arguments() -> tuple[str, ...]:
    """Return how the running command line gives the constructor's arguments, and -I; () if not."""
    return (*_iter_given_arguments(), *GIVEN_WORDS.get().shared)


def _iter_given_arguments() -> Iterator[str]:
    """Yield the constructor's arguments of the running command line, with their options."""
    words = GIVEN_WORDS.get().command
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word in {"-k", "--kwargs"}:
            yield from (word, following)
        elif word.startswith(("-k", "--kwargs=")):
            yield word


def format_lock_command(lock: str, contract: Contract) -> str:
    """Return the `ckptool lock` command that accepts what is there now.

    Args:
        lock: path of the lock's file.
        contract: what is there now.
    """
    lock = protect_path(lock)
    if contract.origin is not ContractOrigin.MODULE:
        return " ".join(
            map(quote_shell, ("ckptool", "lock", protect_path(contract.name), "-o", lock))
        )
    words = ["ckptool", "lock", "-m", contract.origin_name, "-o", lock]
    for name, literal in contract.arguments.items():
        words += ["-k", f"{name}={literal}"]
    return " ".join(map(quote_shell, (*words, *GIVEN_WORDS.get().shared)))


def format_repeated_command(*options: str) -> str:
    """Return the running command line with further options; "" if the library was called."""
    command = GIVEN_WORDS.get().command
    end = command.index("--") if "--" in command else len(command)  # what follows are no options
    words = (*command[:end], *options, *command[end:])
    return " ".join(map(quote_shell, words)) if command else ""
