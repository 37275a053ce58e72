"""A file's text and its statements -> the new text; all other lines stay byte for byte."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.migration.codemod.attribute_fault import (
    CONTAINER_KINDS,
    HookRegistration,
    LineEdit,
    UseEdit,
)
from ckptool.migration.codemod.fixes import FIXES, FixRequest, place_on_device
from ckptool.migration.codemod.hook_lines import add_hook_lines
from ckptool.migration.codemod.import_names import ImportNames, add_imports

FACTORIES: Final = frozenset(
    {"arange", "zeros", "ones", "full", "empty", "linspace", "logspace", "eye", "tensor", "rand",
     "randn", "randint", "randperm", "as_tensor", "scalar_tensor", "tril_indices", "triu_indices",
     "hann_window", "hamming_window"}
)  # fmt: skip
"""Functions of torch that take `device=`."""


@dataclass(frozen=True, slots=True)
class RewrittenSource:
    """The new text of a file, and its edits with the new statements."""

    text: str
    edits: tuple[LineEdit, ...]


def rewrite_source(
    text: str,
    edits: Sequence[LineEdit],
    style: str,
    devices: Mapping[int, str],
    hooks: Sequence[HookRegistration] = (),
    uses: Sequence[UseEdit] = (),
) -> RewrittenSource:
    """Return the text with its edits made.

    Args:
        text: of the file, with its line ends.
        edits: of this file.
        style: "register_buffer" or "nn.Buffer".
        devices: line of a call that creates a tensor -> expression of its device.
        hooks: classes that get lines which register a hook.
        uses: expressions of this file that are replaced.

    Raises:
        PlanError: libcst cannot parse the file, or an edit finds no statement.
    """
    try:
        module = cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        raise PlanError(f"libcst cannot parse it: {error.message}") from error
    if module.code != text:
        raise PlanError("libcst does not reproduce the file, so it is not edited")
    names = ImportNames(module)
    edits_by_line = {edit.fault.line: edit for edit in edits}
    uses_by_range = {(use.start, use.end): use for use in uses}
    rewriter = _Rewriter(module, edits_by_line, style, devices, names, uses_by_range)
    result = MetadataWrapper(module, unsafe_skip_copy=True).visit(rewriter)
    for registration in hooks:
        result = add_hook_lines(result, registration)
    result = add_imports(result, names.new_imports)
    missing = [edit for edit in edits if edit.fault.line not in rewriter.new_texts]
    if missing:
        raise PlanError(f"line {missing[0].fault.line} has no statement that can be replaced")
    if uses_by_range:
        raise PlanError(f"line {min(uses_by_range)[0][0]} has no expression that can be replaced")
    new_edits = tuple(replace(edit, after=rewriter.new_texts[edit.fault.line]) for edit in edits)
    return RewrittenSource(result.code, new_edits)


def format_diff(name: str, old_text: str, new_text: str) -> str:
    """Return the unified diff of a file, named as git names it."""
    lines = difflib.unified_diff(
        old_text.splitlines(keepends=True),
        new_text.splitlines(keepends=True),
        f"a/{name}",
        f"b/{name}",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


@dataclass
class _Rewriter(cst.CSTTransformer):
    """Replaces the statements at the lines of the edits."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    module: cst.Module
    edits: Mapping[int, LineEdit]
    style: str
    devices: Mapping[int, str]
    names: ImportNames
    uses: dict[tuple[tuple[int, int], tuple[int, int]], UseEdit]
    """Start and end of an expression -> its replacement; those that are done are taken out."""
    new_texts: dict[int, str] = field(default_factory=dict)
    """Line of an edit -> its new statement."""

    def __post_init__(self) -> None:
        super().__init__()

    def leave_SimpleStatementLine(  # noqa: N802 - libcst calls it
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> "cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]":
        statement = original_node.body[0]
        is_edited = self._find_edit(statement) is not None
        new_statement = updated_node.body[0]
        if not (isinstance(statement, cst.AnnAssign) and is_edited):
            return updated_node
        if not isinstance(new_statement, cst.Expr):
            return updated_node
        # The annotation stays, as a line of its own before the call.
        declaration = cst.AnnAssign(statement.target, statement.annotation)
        first = cst.SimpleStatementLine([declaration], leading_lines=updated_node.leading_lines)
        return cst.FlattenSentinel([first, updated_node.with_changes(leading_lines=[])])

    def leave_Assign(  # noqa: N802
        self, original_node: cst.Assign, updated_node: cst.Assign
    ) -> cst.BaseSmallStatement:
        return self._replace(original_node, updated_node, updated_node.targets[0].target)

    def leave_AnnAssign(  # noqa: N802
        self, original_node: cst.AnnAssign, updated_node: cst.AnnAssign
    ) -> cst.BaseSmallStatement:
        return self._replace(original_node, updated_node, updated_node.target)

    def leave_Call(  # noqa: N802
        self, original_node: cst.Call, updated_node: cst.Call
    ) -> cst.BaseExpression:
        line = self.get_metadata(PositionProvider, original_node).start.line
        name = _get_name(original_node.func)
        replacement = self._replace_use(original_node)
        if replacement is not None:
            return replacement
        if line in self.devices and line in self.edits and name in FACTORIES:
            new_call = place_on_device(updated_node, self.devices[line])
            self.new_texts[line] = self.module.code_for_node(new_call)
            return new_call
        return updated_node

    def leave_Attribute(  # noqa: N802
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.BaseExpression:
        return self._replace_use(original_node) or updated_node

    def leave_Name(  # noqa: N802
        self, original_node: cst.Name, updated_node: cst.Name
    ) -> cst.BaseExpression:
        return self._replace_use(original_node) or updated_node

    def _replace_use(self, expression: cst.BaseExpression) -> cst.BaseExpression | None:
        """Return what takes the place of a use, None if it stays."""
        position = self.get_metadata(PositionProvider, expression, None)
        if position is None or not self.uses:
            return None
        start, end = position.start, position.end
        use = self.uses.pop(((start.line, start.column), (end.line, end.column)), None)
        return cst.parse_expression(use.after, self.module.config_for_parsing) if use else None

    def _find_edit(self, statement: cst.CSTNode) -> LineEdit | None:
        line = self.get_metadata(PositionProvider, statement).start.line
        edit = self.edits.get(line)
        is_assignment = isinstance(statement, cst.Assign | cst.AnnAssign)
        return edit if edit and is_assignment and edit.fault.kind in FIXES else None

    def _replace(
        self,
        original_node: cst.Assign | cst.AnnAssign,
        updated_node: cst.Assign | cst.AnnAssign,
        target: cst.BaseExpression,
    ) -> cst.BaseSmallStatement:
        edit = self._find_edit(original_node)
        if edit is None or updated_node.value is None or not isinstance(target, cst.Attribute):
            return updated_node
        if target.attr.value != edit.fault.attribute:
            return updated_node
        request = FixRequest(edit.fault, target.value, updated_node.value, self.style, self.names)
        fixed = FIXES[edit.fault.kind](request)
        new_node: cst.BaseSmallStatement = (
            cst.Expr(fixed.expression, semicolon=updated_node.semicolon)
            if fixed.is_call
            else updated_node.with_changes(value=fixed.expression)
        )
        if isinstance(new_node, cst.AnnAssign) and edit.fault.kind in CONTAINER_KINDS:
            assert isinstance(fixed.expression, cst.Call)  # list[nn.Linear] is now nn.ModuleList
            annotation = new_node.annotation.with_changes(annotation=fixed.expression.func)
            new_node = new_node.with_changes(annotation=annotation)
        self.new_texts[edit.fault.line] = self.module.code_for_node(
            new_node.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        )
        return new_node


def _get_name(function: cst.BaseExpression) -> str:
    if isinstance(function, cst.Attribute):
        return function.attr.value
    return function.value if isinstance(function, cst.Name) else ""
