"""FaultKind -> the new right side of the assignment, or the call in its place; a registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import libcst as cst

from ckptool.migration.codemod.attribute_fault import AttributeFault, ContainerForm, FaultKind
from ckptool.migration.codemod.import_names import ImportNames


@dataclass(frozen=True, slots=True, eq=False)
class FixRequest:
    """What a fix is made of."""

    fault: AttributeFault
    owner: cst.BaseExpression
    """The object that the statement assigns to, `self`."""
    value: cst.BaseExpression
    """The right side as it is."""
    style: str
    """"register_buffer" or "nn.Buffer"."""
    names: ImportNames
    name: cst.BaseExpression | None = None
    """The name of the attribute that setattr() is given; None for the one of the fault."""


@dataclass(frozen=True, slots=True, eq=False)
class FixedStatement:
    """What takes the place of an assignment."""

    expression: cst.BaseExpression
    is_call: bool = False
    """Whether the expression is the whole statement, and not only its right side."""


def _register_tensor(request: FixRequest) -> FixedStatement:
    """Return the buffer: `self.register_buffer("mask", ..., persistent=False)`."""
    options = () if request.fault.is_persistent else (_build_false("persistent"),)
    if request.style == "nn.Buffer":
        function = _parse(f"{request.names.need('torch.nn')}.Buffer")
        return FixedStatement(_build_call(function, request.value, options))
    function = cst.Attribute(request.owner, cst.Name("register_buffer"))
    name = request.name or cst.SimpleString(f'"{request.fault.attribute}"')
    arguments = [cst.Arg(name), cst.Arg(request.value), *options]
    return FixedStatement(cst.Call(function, arguments), is_call=True)


def register_none(request: FixRequest) -> FixedStatement:
    """Return the buffer that has no tensor yet: `self.register_buffer("mask", None)`."""
    return _register_tensor(replace(request, style="register_buffer"))


def _register_array(request: FixRequest) -> FixedStatement:
    """Return the buffer of a NumPy array, `torch.as_tensor(...)`."""
    function = _parse(f"{request.names.need('torch')}.as_tensor")
    tensor = _build_call(function, request.value)
    return _register_tensor(replace(request, value=tensor))


def make_parameter(request: FixRequest) -> FixedStatement:
    """Return `nn.Parameter(...)`."""
    function = _parse(f"{request.names.need('torch.nn')}.Parameter")
    return FixedStatement(_build_call(function, request.value))


def _register_modules(request: FixRequest) -> FixedStatement:
    """Return `nn.ModuleList(...)` or `nn.ModuleDict(...)`."""
    return _wrap_container(request, "Module")


def _register_parameters(request: FixRequest) -> FixedStatement:
    """Return `nn.ParameterList(...)` or `nn.ParameterDict(...)`."""
    return _wrap_container(request, "Parameter")


def _register_tensors(request: FixRequest) -> FixedStatement:
    """Return a list or dict of parameters that are not trained: torch has no list of buffers."""
    value = freeze_tensors(request.value, request.fault.form, request.names)
    return _wrap_container(replace(request, value=value), "Parameter")


def freeze_tensor(value: cst.BaseExpression, names: ImportNames) -> cst.Call:
    """Return `nn.Parameter(value, requires_grad=False)`."""
    parameter = _parse(f"{names.need('torch.nn')}.Parameter")
    return _build_call(parameter, value, (_build_false("requires_grad"),))


def freeze_tensors(
    value: cst.BaseExpression, form: ContainerForm | None, names: ImportNames
) -> cst.BaseExpression:
    """Return a list or dict of tensors with each as a parameter that is not trained."""
    frozen = _freeze_elements(value, names)
    if frozen is not None:
        return frozen
    parameter = f"{names.need('torch.nn')}.Parameter"
    if form is ContainerForm.LIST:
        template = f"[{parameter}(t, requires_grad=False) for t in VALUE]"
    else:
        template = f"{{k: {parameter}(v, requires_grad=False) for k, v in VALUE.items()}}"
    inserted = _parse(template).visit(_ValueInsertion(value))
    assert isinstance(inserted, cst.BaseExpression)
    return inserted


def _freeze_elements(value: cst.BaseExpression, names: ImportNames) -> cst.BaseExpression | None:
    """Return a literal or comprehension with its elements frozen; None if it is neither."""

    def freeze(element: cst.BaseExpression) -> cst.Call:
        return freeze_tensor(element, names)

    match value:
        case cst.List(elements=elements) if all(isinstance(e, cst.Element) for e in elements):
            new_elements = [e.with_changes(value=freeze(e.value)) for e in elements]
            return value.with_changes(elements=new_elements)
        case cst.Dict(elements=pairs) if all(isinstance(e, cst.DictElement) for e in pairs):
            return value.with_changes(
                elements=[pair.with_changes(value=freeze(pair.value)) for pair in pairs]
            )
        case cst.ListComp(elt=element) | cst.GeneratorExp(elt=element):
            return value.with_changes(elt=freeze(element))
        case cst.DictComp(value=element):
            return value.with_changes(value=freeze(element))
        case _:
            return None


FIXES: Final[Mapping[FaultKind, Callable[[FixRequest], FixedStatement]]] = {
    FaultKind.TENSOR: _register_tensor,
    FaultKind.ARRAY: _register_array,
    FaultKind.PARAMETER: make_parameter,
    FaultKind.MODULES: _register_modules,
    FaultKind.PARAMETERS: _register_parameters,
    FaultKind.TENSORS: _register_tensors,
}
"""What repairs each kind of assignment; a new kind is an entry here."""


def place_on_device(call: cst.Call, device: str) -> cst.Call:
    """Return the call of a factory such as torch.arange() with `device=DEVICE`."""
    argument = cst.Arg(_parse(device), keyword=cst.Name("device"), equal=_EQUAL)
    *others, last = call.args
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    if isinstance(last.comma, cst.Comma):  # a trailing comma stays behind the last argument
        return call.with_changes(
            args=[*others, last.with_changes(comma=comma), argument.with_changes(comma=last.comma)]
        )
    return call.with_changes(args=[*others, last.with_changes(comma=comma), argument])


def _wrap_container(request: FixRequest, noun: str) -> FixedStatement:
    suffix = "List" if request.fault.form is ContainerForm.LIST else "Dict"
    function = _parse(f"{request.names.need('torch.nn')}.{noun}{suffix}")
    is_empty = isinstance(request.value, cst.List | cst.Dict) and not request.value.elements
    call = cst.Call(function) if is_empty else _build_call(function, request.value)
    return FixedStatement(call)


_EQUAL: Final = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))


def _build_false(name: str) -> cst.Arg:
    return cst.Arg(cst.Name("False"), keyword=cst.Name(name), equal=_EQUAL)


def _build_call(
    function: cst.BaseExpression, value: cst.BaseExpression, options: tuple[cst.Arg, ...] = ()
) -> cst.Call:
    """Return `function(value, ...)`."""
    return cst.Call(function, [cst.Arg(value), *options])


def _parse(text: str) -> cst.BaseExpression:
    return cst.parse_expression(text)


class _ValueInsertion(cst.CSTTransformer):
    """Puts an expression in the place of the name VALUE, in parentheses where it needs them."""

    def __init__(self, value: cst.BaseExpression) -> None:
        super().__init__()
        atoms = (cst.List, cst.Dict, cst.Call, cst.Name, cst.ListComp, cst.DictComp, cst.Attribute)
        is_atom = isinstance(value, atoms) or bool(value.lpar)
        self._value = (
            value
            if is_atom
            else value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        )

    def leave_Name(  # noqa: N802 - libcst calls it
        self, original_node: cst.Name, updated_node: cst.Name
    ) -> cst.BaseExpression:
        return self._value if original_node.value == "VALUE" else updated_node
