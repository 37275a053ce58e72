"""A file's text and its statements -> the new text; all other lines stay byte for byte."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from ckptool.errors import PlanError
from ckptool.migration.codemod.attribute_fault import (
    COMPUTED_NAME,
    CONTAINER_KINDS,
    AttributeFault,
    ContainerForm,
    HookRegistration,
    UseEdit,
)
from ckptool.migration.codemod.fixes import (
    FIXES,
    FixedStatement,
    FixRequest,
    freeze_tensor,
    freeze_tensors,
    place_on_device,
    register_none,
)
from ckptool.migration.codemod.hook_lines import add_hook_lines
from ckptool.migration.codemod.import_names import ImportNames, add_imports

FACTORIES: Final = frozenset(
    {"arange", "zeros", "ones", "full", "empty", "linspace", "logspace", "eye", "tensor", "rand",
     "randn", "randint", "randperm", "as_tensor", "scalar_tensor", "tril_indices", "triu_indices",
     "hann_window", "hamming_window"}
)  # fmt: skip
"""Functions of torch that take `device=`."""


StatementAddress: TypeAlias = tuple[int, str]
"""Line and name of an EditedStatement."""


@dataclass(frozen=True, slots=True)
class RewrittenSource:
    """The new text of a file, and its new statements."""

    text: str
    statements: Mapping[StatementAddress, str]


def rewrite_source(
    text: str,
    faults: Mapping[StatementAddress, AttributeFault],
    style: str,
    devices: Mapping[int, str],
    hooks: Sequence[HookRegistration] = (),
    uses: Sequence[UseEdit] = (),
) -> RewrittenSource:
    """Return the text with its edits made.

    Args:
        text: of the file, with its line ends.
        faults: statements of this file that are replaced, and what each repairs.
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
    uses_by_range = {(use.start, use.end): use for use in uses}
    rewriter = _Rewriter(module, faults, style, devices, names, uses_by_range)
    result = MetadataWrapper(module, unsafe_skip_copy=True).visit(rewriter)
    for registration in hooks:
        result = add_hook_lines(result, registration)
    result = add_imports(result, names.new_imports)
    missing = faults.keys() - rewriter.new_texts.keys()
    if missing:
        raise PlanError(f"line {min(missing)[0]} has no statement that can be replaced")
    if uses_by_range:
        raise PlanError(f"line {min(uses_by_range)[0][0]} has no expression that can be replaced")
    return RewrittenSource(result.code, rewriter.new_texts)


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
    faults: Mapping[StatementAddress, AttributeFault]
    style: str
    devices: Mapping[int, str]
    names: ImportNames
    uses: dict[tuple[tuple[int, int], tuple[int, int]], UseEdit]
    """Start and end of an expression -> its replacement; those that are done are taken out."""
    new_texts: dict[StatementAddress, str] = field(default_factory=dict)
    """New statement of each that is replaced."""
    _following: list[cst.BaseSmallStatement] = field(default_factory=list)
    """Statements to put behind the line that is visited."""

    _functions: list[cst.FunctionDef] = field(default_factory=list)
    """Functions around the node that is visited."""

    def __post_init__(self) -> None:
        super().__init__()

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802
        self._functions.append(node)

    def leave_FunctionDef(  # noqa: N802
        self,
        original_node: cst.FunctionDef,  # noqa: ARG002
        updated_node: cst.FunctionDef,
    ) -> cst.FunctionDef:
        self._functions.pop()
        return updated_node

    def leave_SimpleStatementLine(  # noqa: N802 - libcst calls it
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> "cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]":
        following, self._following = self._following, []
        if following:
            if len(original_node.body) > 1:
                raise PlanError(f"line {self._get_line(original_node)} has several statements")
            lines = [cst.SimpleStatementLine([statement]) for statement in following]
            return cst.FlattenSentinel([updated_node, *lines])
        statement, new_statement = original_node.body[0], updated_node.body[0]
        if not (isinstance(statement, cst.AnnAssign) and isinstance(new_statement, cst.Expr)):
            return updated_node
        # The annotation stays, as a line of its own before the call.
        declaration = cst.AnnAssign(statement.target, statement.annotation)
        first = cst.SimpleStatementLine([declaration], leading_lines=updated_node.leading_lines)
        return cst.FlattenSentinel([first, updated_node.with_changes(leading_lines=[])])

    def leave_SimpleStatementSuite(  # noqa: N802
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        if self._following:
            raise PlanError(f"line {self._get_line(original_node)} has several statements")
        return updated_node

    def leave_Assign(  # noqa: N802
        self, original_node: cst.Assign, updated_node: cst.Assign
    ) -> cst.BaseSmallStatement:
        if self._pop_use(original_node) is not None:  # an element of a container is assigned
            return updated_node.with_changes(value=freeze_tensor(updated_node.value, self.names))
        targets = [target.target for target in updated_node.targets]
        if len(targets) == 1 and isinstance(targets[0], cst.Attribute):
            return self._replace(original_node, updated_node, targets[0])
        return self._split(original_node, updated_node)

    def leave_AugAssign(  # noqa: N802
        self, original_node: cst.AugAssign, updated_node: cst.AugAssign
    ) -> cst.BaseSmallStatement:
        if self._pop_use(original_node) is None:
            return updated_node
        value = freeze_tensors(updated_node.value, ContainerForm.LIST, self.names)
        return updated_node.with_changes(value=value)

    def leave_AnnAssign(  # noqa: N802
        self, original_node: cst.AnnAssign, updated_node: cst.AnnAssign
    ) -> cst.BaseSmallStatement:
        target = updated_node.target
        if not isinstance(target, cst.Attribute):
            return updated_node
        return self._replace(original_node, updated_node, target)

    def leave_Call(  # noqa: N802
        self, original_node: cst.Call, updated_node: cst.Call
    ) -> cst.BaseExpression:
        line = self._get_line(original_node)
        name = _get_name(original_node.func)
        use = self._pop_use(original_node)
        if use is not None:
            return self._freeze_added(updated_node) if use.is_frozen else self._parse(use.after)
        address, fault = self._find_setattr_fault(original_node)
        if fault is not None:
            return self._replace_setattr(address, fault, updated_node)
        if line in self.devices and name in FACTORIES:
            new_call = place_on_device(updated_node, self.devices[line])
            self.new_texts[line, ""] = self.module.code_for_node(new_call)
            return new_call
        return updated_node

    def leave_Attribute(  # noqa: N802
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.BaseExpression:
        use = self._pop_use(original_node)
        return updated_node if use is None else self._parse(use.after)

    def leave_Name(  # noqa: N802
        self, original_node: cst.Name, updated_node: cst.Name
    ) -> cst.BaseExpression:
        use = self._pop_use(original_node)
        return updated_node if use is None else self._parse(use.after)

    def _pop_use(self, node: cst.CSTNode) -> UseEdit | None:
        """Return the edit of a use, None if it stays."""
        position = self.get_metadata(PositionProvider, node, None)
        if position is None or not self.uses:
            return None
        start, end = position.start, position.end
        return self.uses.pop(((start.line, start.column), (end.line, end.column)), None)

    def _parse(self, expression: str) -> cst.BaseExpression:
        return cst.parse_expression(expression, self.module.config_for_parsing)

    def _freeze_added(self, call: cst.Call) -> cst.Call:
        """Return `self.masks.append(x)` or `.extend(xs)` with parameters that are not trained."""
        (argument,) = call.args
        is_one = _get_name(call.func) == "append"
        value = (
            freeze_tensor(argument.value, self.names)
            if is_one
            else freeze_tensors(argument.value, ContainerForm.LIST, self.names)
        )
        return call.with_changes(args=[argument.with_changes(value=value)])

    def _get_line(self, node: cst.CSTNode) -> int:
        return int(self.get_metadata(PositionProvider, node).start.line)

    def _find_fault(
        self, statement: cst.CSTNode, target: cst.Attribute
    ) -> tuple[StatementAddress, AttributeFault | None]:
        address = self._get_line(statement), target.attr.value
        return address, self.faults.get(address)

    def _find_setattr_fault(self, call: cst.Call) -> tuple[StatementAddress, AttributeFault | None]:
        """Return the fault that `setattr(self, "name", value)` is the statement of."""
        is_setattr = isinstance(call.func, cst.Name) and call.func.value == "setattr"
        match call.args:
            case [_, cst.Arg(value=name), _] if is_setattr:
                attribute = (
                    str(name.evaluated_value)
                    if isinstance(name, cst.SimpleString)
                    else COMPUTED_NAME
                )
                address = self._get_line(call), attribute
                return address, self.faults.get(address)
            case _:
                return (0, ""), None

    def _replace_setattr(
        self, address: StatementAddress, fault: AttributeFault, call: cst.Call
    ) -> cst.BaseExpression:
        if address in self.new_texts:
            raise PlanError(
                f"line {address[0]} has several calls of setattr(): write each on its own line"
            )
        owner, name, value = call.args
        fixed = self._fix(fault, owner.value, value.value, name.value)
        new_value = value.with_changes(value=fixed.expression)
        new_call = (
            fixed.expression if fixed.is_call else call.with_changes(args=[owner, name, new_value])
        )
        self.new_texts[address] = self.module.code_for_node(new_call)
        return new_call

    def _replace(
        self,
        original_node: cst.Assign | cst.AnnAssign,
        updated_node: cst.Assign | cst.AnnAssign,
        target: cst.Attribute,
    ) -> cst.BaseSmallStatement:
        """Return the statement that registers what `self.name = value` assigns."""
        address, fault = self._find_fault(original_node, target)
        if fault is None or updated_node.value is None:
            return updated_node
        fixed = self._fix(fault, target.value, updated_node.value)
        new_node: cst.BaseSmallStatement = (
            cst.Expr(fixed.expression, semicolon=updated_node.semicolon)
            if fixed.is_call
            else updated_node.with_changes(value=fixed.expression)
        )
        if isinstance(new_node, cst.AnnAssign) and fault.kind in CONTAINER_KINDS:
            assert isinstance(fixed.expression, cst.Call)  # list[nn.Linear] is now nn.ModuleList
            annotation = new_node.annotation.with_changes(annotation=fixed.expression.func)
            new_node = new_node.with_changes(annotation=annotation)
        self.new_texts[address] = self._format_statement(new_node)
        return new_node

    def _split(self, original_node: cst.Assign, updated_node: cst.Assign) -> cst.BaseSmallStatement:
        """Return an assignment to variables, where `self.a, b = ...` or `self.a = a = ...` is.

        What registers the variables follows on lines of its own.
        """
        is_chained = len(updated_node.targets) > 1
        variables: dict[StatementAddress, tuple[cst.Name, cst.Attribute]] = {}
        common = [t.target for t in updated_node.targets if isinstance(t.target, cst.Name)]
        for target in _list_attributes(updated_node):
            address, fault = self._find_fault(original_node, target)
            if fault is not None:
                name = common[0] if common else self._name_variable(target.attr.value)
                common = [name] if is_chained else []
                variables[address] = name, target
        if not variables:
            return updated_node
        replaced = {id(target): name for name, target in variables.values()}
        new_node = _replace_targets(updated_node, replaced, is_chained=is_chained)
        for address, (name, target) in variables.items():
            fixed = self._fix(self.faults[address], target.value, name)
            statement: cst.BaseSmallStatement = (
                cst.Expr(fixed.expression)
                if fixed.is_call
                else cst.Assign([cst.AssignTarget(target)], fixed.expression)
            )
            self._following.append(statement)
            self.new_texts[address] = self._format_statement(statement)
        first = next(iter(variables))
        lines = [self._format_statement(new_node), self.new_texts[first]]
        self.new_texts[first] = "\n".join(lines)
        return new_node

    def _fix(
        self,
        fault: AttributeFault,
        owner: cst.BaseExpression,
        value: cst.BaseExpression,
        name: cst.BaseExpression | None = None,
    ) -> FixedStatement:
        request = FixRequest(fault, owner, value, self.style, self.names, name)
        is_none = isinstance(value, cst.Name) and value.value == "None"
        return (register_none if is_none else FIXES[fault.kind])(request)

    def _name_variable(self, attribute: str) -> cst.Name:
        """Return the name of a variable for the value of an attribute, new in its function."""
        name = attribute.strip("_") or "value"
        code = self.module.code_for_node(self._functions[-1]) if self._functions else ""
        while re.search(rf"(?<![.\w]){name}\b", code):
            name += "_"
        return cst.Name(name)

    def _format_statement(self, statement: cst.BaseSmallStatement) -> str:
        bare = statement.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        return self.module.code_for_node(bare)


def _list_attributes(node: cst.Assign) -> list[cst.Attribute]:
    """Return the attributes among the targets of an assignment."""
    targets: list[cst.BaseExpression] = []
    for target in node.targets:
        inner = target.target
        several = inner.elements if isinstance(inner, cst.Tuple | cst.List) else ()
        targets += [element.value for element in several] or [inner]
    return [target for target in targets if isinstance(target, cst.Attribute)]


def _replace_targets(
    node: cst.Assign, variables: Mapping[int, cst.Name], *, is_chained: bool
) -> cst.Assign:
    """Return an assignment with variables in place of attributes; in a chain these are left out."""
    if is_chained:
        left = [t for t in node.targets if id(t.target) not in variables]
        if not any(isinstance(t.target, cst.Name) for t in left):
            left = [cst.AssignTarget(next(iter(variables.values()))), *left]
        return node.with_changes(targets=left)
    (target,) = node.targets
    several = target.target
    assert isinstance(several, cst.Tuple | cst.List)
    elements = [e.with_changes(value=variables.get(id(e.value), e.value)) for e in several.elements]
    new_target = target.with_changes(target=several.with_changes(elements=elements))
    return node.with_changes(targets=[new_target])


def _get_name(function: cst.BaseExpression) -> str:
    if isinstance(function, cst.Attribute):
        return function.attr.value
    return function.value if isinstance(function, cst.Name) else ""
