"""AttributeFault, what an edit repairs; LineEdit and RefusedFix, what becomes of it."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct


class FaultKind(StrEnum):
    """What an attribute holds that no state_dict saves, or what forward creates."""

    TENSOR = "tensor"
    ARRAY = "array"
    """A NumPy array."""
    PARAMETER = "parameter"
    """A tensor that the user asked to have trained."""
    TENSORS = "tensors"
    """A list or dict of tensors."""
    PARAMETERS = "parameters"
    """A list or dict of nn.Parameter."""
    MODULES = "modules"
    """A list or dict of modules."""
    CREATED_TENSOR = "created-tensor"
    """A tensor that forward creates on the CPU."""


CONTAINER_KINDS: Final = frozenset({FaultKind.TENSORS, FaultKind.PARAMETERS, FaultKind.MODULES})


class ContainerForm(StrEnum):
    """How the elements of a container are reached."""

    LIST = "list"
    DICT = "dict"
    OTHER = "other"
    """By several steps, or by the attributes of an object."""


class AttributeFault(Struct, frozen=True):
    """One attribute of a class that findings are about, or one line of forward."""

    kind: FaultKind
    codes: tuple[str, ...]
    """Codes of its findings, the gravest first."""
    keys: tuple[str, ...]
    """Keys of its findings: "encoder.mask", "convs[0]"."""
    owner: str
    """Qualified name of the class of the module that owns it, "" for a line of forward."""
    attribute: str
    """"" for a line of forward."""
    location: str
    """"file:line" of the assignment, "" if it is not known."""
    form: ContainerForm | None = None
    """Of a container; None for a single value."""
    is_persistent: bool = True
    """Whether the state_dict has to have it: the constructor does not make the value again."""
    shared_with: str = ""
    """Path of other state of the module with the same memory, "" for none."""
    is_class_attribute: bool = False
    requires_grad: bool = False

    @property
    def file(self) -> str:
        """Path of the source file, "" if it is not known."""
        return self.location.rpartition(":")[0]

    @property
    def line(self) -> int:
        """Line of the assignment, 0 if it is not known."""
        line_text = self.location.rpartition(":")[2]
        return int(line_text) if line_text.isdecimal() else 0


class UseEdit(Struct, frozen=True):
    """An expression that reads the attribute, and what serves the new object in its place."""

    path: Path
    """Resolved path of the source file."""
    start: tuple[int, int]
    end: tuple[int, int]
    """Line from 1, and column from 0 in characters."""
    before: str
    after: str
    is_frozen: bool = False
    """Whether it is a call or an assignment that adds tensors to a container, and stays: they
    become parameters that are not trained. `after` is "" then.
    """


class AttributeUses(Struct, frozen=True):
    """What has to change where an attribute is read, and what no proof runs."""

    edits: tuple[UseEdit, ...] = ()
    unrun: tuple[str, ...] = ()
    """"inverse() at net.py:20": uses in methods that neither constructor nor forward call."""


COMPUTED_NAME: Final = "(computed)"
"""Stands for the name of an attribute that setattr() is given as an expression."""


class EditedStatement(Struct, frozen=True):
    """A statement that is going to be replaced."""

    path: Path
    """Resolved path of the source file."""
    line: int
    name: str
    """The attribute that it assigns, COMPUTED_NAME for several, "" for a call in forward."""
    before: str
    """The statement as it is, without its indentation."""
    after: str = ""


class LineEdit(Struct, frozen=True):
    """The edit of one attribute: its statement, and those of other branches."""

    fault: AttributeFault
    """What is repaired, of all modules."""
    faults: tuple[AttributeFault, ...]
    """The same by module: in each another one of the statements may have made the value."""
    statements: tuple[EditedStatement, ...]
    """First the one at the line of the fault."""
    class_name: str = ""
    """Name of the class that the statement is in, "" for a line of forward."""
    uses: AttributeUses = AttributeUses()
    unseen: tuple[str, ...] = ()
    """"net.py:12": statements of other branches, which may not run in any module at hand."""
    assumed: tuple[str, ...] = ()
    """"net.py:8": statements whose value is an argument that may not be a tensor or None."""
    left: tuple[str, ...] = ()
    """"net.py:14": branches that assign something else, and stay as they are."""

    @property
    def path(self) -> Path:
        """File of the first statement."""
        return self.statements[0].path


class RefusedFix(Struct, frozen=True):
    """A fault whose source is not edited, and why."""

    fault: AttributeFault
    reason: str


class SourceChange(Struct, frozen=True):
    """Content of a source file before and after."""

    path: Path
    """Resolved path."""
    old_content: bytes
    new_content: bytes


class EditPlan(Struct, frozen=True):
    """Edits of a project's files, and the faults that are left."""

    changes: Mapping[Path, SourceChange]
    edits: tuple[LineEdit, ...]
    refused: tuple[RefusedFix, ...]


class HookRegistration(Struct, frozen=True):
    """A class that is to register a hook for old files."""

    class_name: str
    version: int
    import_text: str
    """"from package.upgrade_net import register_upgrade_hook"."""
    function: str
    """Name of the function that registers it."""
