"""Code of a TorchScript archive -> content fingerprints, whatever names the process made.

A process gives the second class of a name another one (`___torch_mangle_5.Linear`), a file of its
own, and numbers the variables of all functions of a file. torch.jit.load makes the same of both:
classes and functions are compared one by one, under names that are numbered in the order in which
the archive refers to them, and so are their variables.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.contents.collector import UNKNOWN_CONTENT, create_content_hasher
from ckptool.formats.python_text import parse_module
from ckptool.formats.torch.archive_records import ArchiveRecords
from ckptool.formats.zip.archive import ZipMember, read_member
from ckptool.model import Content

DEBUG_SUFFIX: Final = ".debug_pkl"
"""End of the records that say which lines of which files of the user the code is of."""
_MAX_CODE_BYTES: Final = 16 << 20
"""Bytes of the code of one archive that are compared by class; a file beyond is unknown."""
_MAX_PARSED_CHARS: Final = 256 << 10
"""Characters of the longest definition whose variables are numbered."""
_MAX_MEMBERS: Final = 4
"""Names behind that of a class in a reference: a member of an enum, a method."""
_MANGLED_PART: Final = re.compile(r"\.___torch_mangle_\d+(?=\.)")
_REFERENCE: Final = re.compile(r"__torch__(?:\.\w+)+")
_DEFINITION: Final = re.compile(r"^(?=(?:class|def)\s+\w)", re.MULTILINE)
_DEFINED_NAME: Final = re.compile(r"(?:class|def)\s+(\w+)")


class ScriptNames:
    """Numbers the classes and functions of one archive that have a name in common."""

    def __init__(self, definitions: Iterable[str] = ()) -> None:
        self.order: list[str] = []
        """The qualified names, in the order of the references to them."""
        self.compared_names: dict[str, str] = {}
        """Qualified name -> the name under which it is compared."""
        self._definitions = frozenset(definitions)
        self._counts: dict[str, int] = {}

    def rewrite(self, text: str) -> str:
        """Return `text` with the names in it replaced by those under which they are compared."""
        if "__torch__." not in text:
            return text
        return _REFERENCE.sub(lambda match: self._rewrite_reference(match[0]), text)

    def _rewrite_reference(self, reference: str) -> str:
        """Replace the part that the code defines: the members of a class follow its name."""
        name = reference
        for _ in range(_MAX_MEMBERS):
            if name in self._definitions:
                break
            name = name.rpartition(".")[0]
        else:
            name = reference
        return self._number(name) + reference[len(name) :]

    def _number(self, name: str) -> str:
        if name not in self.compared_names:
            plain_name = _MANGLED_PART.sub("", name)
            count = self._counts[plain_name] = self._counts.get(plain_name, 0) + 1
            module, _, last = plain_name.rpartition(".")
            self.order.append(name)
            self.compared_names[name] = (
                plain_name if count == 1 else f"{module}.___torch_mangle_{count}.{last}"
            )
        return self.compared_names[name]


class ScriptCode:
    """The classes and functions of one archive."""

    def __init__(self, records: ArchiveRecords) -> None:
        self._definitions: dict[str, str] = {}
        """Qualified name -> its text."""
        self._others: dict[str, Content] = {}
        """Place -> content of what is not in a definition, or of files that were not read."""
        remaining = _MAX_CODE_BYTES
        for name, member in records.items():
            if is_code(name):
                text = _read_text(records, member, remaining)
                remaining -= member.nbytes if text is not None else 0
                self._add_file(name, text)
        self.names = ScriptNames(self._definitions)

    def _add_file(self, record: str, text: str | None) -> None:
        if text is None:
            self._others[f"record {record}"] = UNKNOWN_CONTENT
            return
        module = record.removeprefix("code/").removesuffix(".py").replace("/", ".")
        head, *definitions = _DEFINITION.split(text)
        for definition in definitions:
            match = _DEFINED_NAME.match(definition)
            name = f"{module}.{match[1]}" if match else module
            if name in self._definitions:
                self._others[f"record {record}"] = _fingerprint(text)
            self._definitions[name] = definition
        if head.strip():
            self._others[f"record {record}"] = _fingerprint(head)

    def iter_contents(self) -> Iterator[tuple[str, Content]]:
        """Yield (place, content) of all code; the names that were seen before come first."""
        position = 0
        all_names = sorted(self._definitions, key=lambda name: _MANGLED_PART.sub("", name))
        for names in ((), all_names):
            for name in names:
                self.names.rewrite(name)
            while position < len(self.names.order):  # each text may add names to it
                name = self.names.order[position]
                position += 1
                if name in self._definitions:
                    text = self.names.rewrite(self._definitions[name])
                    place = self.names.compared_names[name].replace(".", "/")
                    yield f"record code/{place}", _fingerprint(_normalize(text))
        yield from self._others.items()


def is_code(record: str) -> bool:
    """Whether a record is a file of code."""
    return record.startswith("code/") and record.endswith(".py")


def _read_text(records: ArchiveRecords, member: ZipMember, max_nbytes: int) -> str | None:
    if member.nbytes > max_nbytes:
        return None
    try:
        data = read_member(records.source, member, records.limits, max_nbytes)
    except CorruptCheckpointError:
        return None
    return data.decode("utf-8", "surrogateescape")


def _fingerprint(text: str) -> str:
    return create_content_hasher(text.encode("utf-8", "surrogateescape")).hexdigest()


def _normalize(text: str) -> str:
    """Return the syntax of a definition, with sorted constants and numbered variables.

    The text itself if Python cannot parse it, if it has a comment, or if it is very long.
    """
    if "#" in text or len(text) > _MAX_PARSED_CHARS:
        return text
    try:
        tree = parse_module(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                _number_variables(node)
            elif isinstance(node, ast.ClassDef):
                _sort_constants(node)
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _sort_constants(definition: ast.ClassDef) -> None:
    """Sort `in_features : Final[int] = 2` of a class: torch writes them in the order of a set."""
    places = [number for number, node in enumerate(definition.body) if _is_constant(node)]
    constants = sorted((definition.body[number] for number in places), key=ast.dump)
    for number, node in zip(places, constants, strict=True):
        definition.body[number] = node


def _is_constant(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.AnnAssign)
        and isinstance(node.annotation, ast.Subscript)
        and isinstance(node.annotation.value, ast.Name)
        and node.annotation.value.id == "Final"
    )


def _number_variables(function: ast.FunctionDef) -> None:
    """Name the variables by numbers, in the order of assignment."""
    arguments = {argument.arg for argument in function.args.args}
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    numbers: Mapping[str, str] = {
        name: f"variable {number}"
        for number, name in enumerate(
            dict.fromkeys(
                node.id
                for node in names
                if isinstance(node.ctx, ast.Store) and node.id not in arguments
            )
        )
    }
    for node in names:
        node.id = numbers.get(node.id, node.id)
