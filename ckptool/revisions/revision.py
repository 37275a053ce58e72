"""TOML <-> Revision: one migration of a chain, with the state that it leads to."""

import ast
import hashlib
import re
import tomllib
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ckptool.decode_errors import explain_decode_error, find_unknown_field
from ckptool.errors import PlanError, RevisionError, describe_os_error
from ckptool.locations import read_small_file
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.plan_file import Op, Plan, decode_plan, format_step
from ckptool.phrases import quote_code
from ckptool.revisions.recorded_state import RecordedState, format_state, parse_state

SCHEMA: Final = 1
VALUES_FOLDER: Final = "values"
"""Folder of the values that steps inject, in the folder of the chain."""
MAX_PYTHON_NBYTES: Final = 1 << 20
_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_FILE_NAME: Final = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,199}")
_SAFE_SOURCES: Final = ("attribute", "constructor", "literal", "seed", "zeros")
"""Kinds of sources that name no file."""


class _StateTable(Struct, frozen=True, forbid_unknown_fields=True):
    digest: str
    tensors: str


class _RevisionFile(Struct, frozen=True, forbid_unknown_fields=True):
    """Top level of a revision's file; `ops` is read as a plan is."""

    revision: str
    message: str
    date: date
    project: str
    state: _StateTable
    parent: str = ""
    module: str = ""
    python: str = ""
    schema: int = SCHEMA
    ops: tuple[dict[str, Any], ...] = ()


class Revision(Struct, frozen=True):
    """One migration of a chain."""

    path: Path
    """Its file."""
    revision: str
    """Its identifier, which stamps carry; the file may be renamed."""
    parent: str
    """Identifier of the revision before it, "" for the first."""
    message: str
    created: date
    project: str
    """Identifier of the chain, the same in all of its revisions."""
    module: str
    """Import target whose state was recorded, "" if it was a lock's."""
    state: RecordedState
    """The state_dict from this revision on."""
    plan: Plan = Plan()
    """Steps from the parent's state to this one; file sources are absolute."""
    python: str = ""
    """File with `upgrade(state)` instead of steps, in the folder of the chain; "" for steps."""

    @property
    def name(self) -> str:
        """Name of its file without the suffix: "0003_mask_is_a_buffer"."""
        return self.path.stem

    @property
    def python_path(self) -> Path:
        return self.path.with_name(self.python)


def read_revision(path: Path) -> Revision:
    """Read the file of a revision.

    Raises:
        RevisionError: it cannot be read, is not a revision, names a file elsewhere, or the recorded
            state was edited.
    """
    try:
        data = tomllib.loads(read_small_file(path).decode("utf-8-sig"))
    except OSError as error:
        raise RevisionError(f"{path}: {describe_os_error(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RevisionError(f"{path}: is not valid TOML: {error}") from error
    try:
        file = msgspec.convert(data, _RevisionFile)
    except msgspec.ValidationError as error:
        raise RevisionError(f"{path}: {_explain_error(str(error))}") from error
    if file.schema != SCHEMA:
        raise RevisionError(f"{path}: schema {file.schema} is not supported: this version reads 1")
    try:
        return _check_revision(path, file)
    except (RevisionError, PlanError) as error:
        text = str(error).removeprefix(f"{path}: ")
        raise RevisionError(f"{path}: {text}") from error


def _explain_error(message: str) -> str:
    """Return a message of msgspec in TOML terms, with a suggestion for an unknown key."""
    unknown_field = find_unknown_field(message)
    if unknown_field is None:
        return explain_decode_error(message)
    known_keys = [
        field.encode_name
        for table in (_RevisionFile, _StateTable)
        for field in msgspec.structs.fields(table)
    ]
    close = get_close_matches(unknown_field.name, known_keys, n=1)
    hint = f"did you mean `{close[0]}`?" if close else "a newer ckptool may have written it"
    return f"unknown key `{unknown_field.name}`; {hint}"


def _check_revision(path: Path, file: _RevisionFile) -> Revision:
    for identifier in (file.revision, file.project, *filter(None, [file.parent])):
        if not _IDENTIFIER.fullmatch(identifier):
            raise RevisionError(
                f"{identifier!r:.80} is not an identifier: letters, digits, - and _"
            )
    state = parse_state(file.state.tensors)
    if state.digest != file.state.digest:
        raise RevisionError(
            "the recorded state does not have its digest: it was edited, or merged by hand"
        )
    if file.python and file.ops:
        raise RevisionError("has both steps and a Python file: a revision has one of them")
    if file.python:
        _check_file_name(path.parent, file.python)
    plan = decode_plan({"ops": list(file.ops)}, str(path))
    steps = tuple(_locate_source(path.parent, op) for op in plan.ops)
    return Revision(
        path=path,
        revision=file.revision,
        parent=file.parent,
        message=file.message,
        created=file.date,
        project=file.project,
        module=file.module,
        state=state,
        plan=replace(plan, ops=steps),
        python=file.python,
    )


def _check_file_name(folder: Path, name: str) -> Path:
    """Return the file `name` in `folder`, which a revision names.

    Raises:
        RevisionError: the name leads elsewhere, or there is no such file.
    """
    path = folder / name
    if not _FILE_NAME.fullmatch(name):
        raise RevisionError(f"{name!r:.80} is not the name of a file in {folder}")
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise RevisionError(f"{name} is not a file in {folder}")
    return path


def _locate_source(folder: Path, op: Op) -> Op:
    """Return a step whose file source, `file:values/NAME#KEY`, has an absolute path.

    Raises:
        RevisionError: its source is a file elsewhere.
    """
    if not isinstance(op, InjectTensor) or op.source.partition(":")[0] in _SAFE_SOURCES:
        return op
    kind, _, argument = op.source.partition(":")
    place, _, key = argument.partition("#")
    name = place.removeprefix(f"{VALUES_FOLDER}/")
    if kind != "file" or name == place:
        raise RevisionError(
            f"inject {quote_code(op.key)}: a revision takes values from files in "
            f"{VALUES_FOLDER}/ only: file:{VALUES_FOLDER}/NAME#KEY"
        )
    path = _check_file_name(folder / VALUES_FOLDER, name)
    return replace(op, source=f"file:{path.absolute()}#{key}")


def format_revision(revision: Revision) -> str:
    """Return the TOML text of a revision's file; sources in the chain's folder are relative."""
    import tomli_w

    head: dict[str, Any] = {
        "schema": SCHEMA,
        "revision": revision.revision,
        "parent": revision.parent,
        "message": revision.message,
        "date": revision.created,
        "project": revision.project,
        "module": revision.module,
    }
    if revision.python:
        head["python"] = revision.python
    state_lines = (
        f'[state]\ndigest = "{revision.state.digest}"\n'
        f"tensors = '''\n{format_state(revision.state)}'''\n"
    )
    return "\n".join(
        [tomli_w.dumps(head), *map(format_step, list_named_steps(revision)), state_lines]
    )


def list_named_steps(revision: Revision) -> tuple[Op, ...]:
    """Return the steps as the file has them: sources in the chain's folder are relative to it."""
    folder = f"file:{(revision.path.parent / VALUES_FOLDER).absolute()}/"
    return tuple(
        replace(op, source=f"file:{VALUES_FOLDER}/{op.source.removeprefix(folder)}")
        if isinstance(op, InjectTensor) and op.source.startswith(folder)
        else op
        for op in revision.plan.ops
    )


def name_revision(revision: Revision) -> str:
    """Return the identifier of a new revision: the same content gives the same one, anywhere."""
    steps = map(format_step, list_named_steps(revision))
    content = "\0".join((revision.parent, revision.message, revision.state.digest, *steps))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def list_functions(path: Path) -> frozenset[str]:
    """Return the names of the functions that a Python revision defines, without running it.

    Raises:
        RevisionError: it cannot be read, or is not Python.
    """
    try:
        content = path.read_bytes()[: MAX_PYTHON_NBYTES + 1]
        if len(content) > MAX_PYTHON_NBYTES:
            raise RevisionError(f"{path}: has more than {MAX_PYTHON_NBYTES >> 20} MiB")
        tree = ast.parse(content)
    except OSError as error:
        raise RevisionError(f"{path}: {describe_os_error(error)}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RevisionError(f"{path}: is not Python: {error}") from error
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
