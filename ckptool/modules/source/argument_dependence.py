"""AST of a constructor -> whether its arguments, more than as sizes, decide a tensor's value."""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ckptool.modules.source.attribute_writes import get_called_name

_FILLS: Final = frozenset(
    {
        *("zeros", "ones", "empty", "eye", "zeros_like", "ones_like", "empty_like", "Tensor"),
        *("new_zeros", "new_ones", "new_empty", "empty_strided", "FloatTensor", "LongTensor"),
    }
)
"""Functions whose arguments are sizes only."""
_ZERO_FILLS: Final = frozenset({"zeros", "zeros_like", "new_zeros"})
_FILL_VALUE_POSITIONS: Final = {
    "full": 1, "full_like": 1, "new_full": 1, "fill_": 0, "copy_": 0, "new_tensor": 0,
    "masked_fill": 1, "masked_fill_": 1, "index_fill_": 2,
}  # fmt: skip
"""Function or method -> position of the argument that is the value."""
_LIBRARIES: Final = frozenset({"torch", "nn", "np", "numpy", "math", "F", "functional"})
_PATTERNS: Final = frozenset({"tril", "triu", "arange", "range", "linspace", "logspace"})
"""Functions whose sizes decide values as well."""
_OPERAND_FUNCTIONS: Final = frozenset(
    {
        *("tensor", "as_tensor", "asarray", "array", "scalar_tensor", "from_numpy"),
        *("where", "maximum", "minimum", "add", "sub", "subtract", "mul", "multiply", "div"),
        *("divide", "true_divide", "floor_divide", "pow", "fmod", "remainder", "lerp", "eq"),
        *("ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "clamp"),
        *("clip", "outer", "matmul", "mm", "dot", "min", "max", "isin", "atan2"),
        *("add_", "sub_", "mul_", "div_", "pow_", "clamp_"),
    }
)
"""Functions and methods of which every positional argument is a value."""
_RECEIVER_METHODS: Final = frozenset(
    {
        *("view", "reshape", "expand", "repeat", "repeat_interleave", "tile", "unsqueeze"),
        *("squeeze", "flatten", "transpose", "permute", "t", "contiguous", "clone", "detach"),
        *("requires_grad_", "to", "type", "type_as", "cuda", "cpu", "float", "half", "double"),
        *("bfloat16", "int", "long", "short", "bool", "numpy", "pin_memory", "astype", "view_as"),
        *("sum", "mean", "prod", "any", "all", "cumsum", "cumprod", "abs", "neg", "sqrt", "rsqrt"),
        *("exp", "log", "log2", "log10", "sin", "cos", "tanh", "sigmoid", "floor", "ceil"),
        *("round", "sign", "square", "reciprocal", "logical_not", "softmax", "norm", "flip"),
        *("size", "numel", "dim", "tolist", "item", "get", "pop", "copy", "keys", "values"),
        *("items", "index", "count", "lower", "upper", "strip", "split", "startswith"),
        *("endswith", "is_integer", "tril", "triu"),
    }
)
"""Methods whose result is decided by the object that they are called on."""
_BUILTINS: Final = frozenset(
    {
        *("int", "float", "bool", "len", "min", "max", "sum", "abs", "round", "pow", "list"),
        *("tuple", "sorted", "range", "reversed", "enumerate", "zip", "any", "all", "set"),
        *("isinstance", "hasattr", "getattr"),
    }
)
_WRAPPERS: Final = frozenset({"Buffer", "Parameter"})
"""Classes of torch.nn that hold the tensor that they are given."""
_VALUE_KEYWORDS: Final = frozenset(
    {
        *("data", "fill_value", "input", "other", "value", "start", "end", "step", "stop"),
        *("object", "obj", "min", "max", "exponent", "base", "diagonal"),
    }
)

_Function: TypeAlias = ast.FunctionDef
_Names: TypeAlias = Mapping[str, bool]
"""Variables of comprehensions -> whether their values depend on the arguments."""
_Visited: TypeAlias = frozenset[object]
"""Names that are being decided already: a name in terms of itself decides nothing."""


def is_computed_from_arguments(functions: Sequence[ast.FunctionDef], attribute: str) -> bool:
    """Whether the source shows that the constructor's arguments decide the value of an attribute.

    `torch.full((n,), scale)` and `torch.tensor([p > 0 for p in classes])` depend on `scale` and
    `classes`; `torch.zeros(n)` does not depend on `n`. What cannot be decided is False.

    Args:
        functions: the constructor, those of the bases, and the methods that they call.
        attribute: name of a buffer or of a plain attribute.
    """
    return _Constructor(tuple(functions)).depends_attribute(attribute, frozenset())


@dataclass(frozen=True, slots=True)
class _Assigned:
    """An expression that a variable or an attribute gets, or is changed with in place."""

    function: _Function
    node: ast.AST
    """The statement or call."""
    expression: ast.expr | None
    """None if it cannot be decided."""
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class _Constructor:
    """The functions that construct a module, and what depends on their arguments."""

    functions: tuple[_Function, ...]

    def depends_attribute(self, attribute: str, visited: _Visited) -> bool:
        """Whether every assignment of `self.attribute`, or a change in place, depends on them."""
        key = ("self", attribute)
        if key in visited:
            return False
        assignments = [
            assigned
            for function in self.functions
            for assigned in _iter_attribute_assignments(function, attribute)
        ]
        return self._depends_assigned(assignments, visited | {key})

    def depends_value(
        self, expression: ast.expr | None, function: _Function, visited: _Visited, names: _Names
    ) -> bool:
        """Whether the value of `expression` depends on the arguments of the constructor."""

        def depends(inner: ast.expr) -> bool:
            return self.depends_value(inner, function, visited, names)

        match expression:
            case ast.Name(id=name):
                if name in names:
                    return names[name]
                return self._depends_variable(expression, function, visited)
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name == _get_self(function):
                return self.depends_attribute(attr, visited)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                is_choice = _is_plain_constant(body) and _is_plain_constant(orelse)
                return (is_choice and depends(test)) or (depends(body) and depends(orelse))
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
                inner_names = dict(names)
                for generator in expression.generators:
                    is_dependent = self.depends_value(
                        generator.iter, function, visited, inner_names
                    )
                    inner_names |= dict.fromkeys(_list_names(generator.target), is_dependent)
                return self.depends_value(element, function, visited, inner_names)
            case _:
                return any(map(depends, _list_operands(expression)))

    def _depends_assigned(self, assignments: Sequence[_Assigned], visited: _Visited) -> bool:
        replaced = [assigned for assigned in assignments if not assigned.in_place]
        changed = [assigned for assigned in assignments if assigned.in_place]

        def depends(assigned: _Assigned) -> bool:
            return self.depends_value(assigned.expression, assigned.function, visited, {})

        return (bool(replaced) and all(map(depends, replaced))) or any(map(depends, changed))

    def _depends_variable(self, variable: ast.Name, function: _Function, visited: _Visited) -> bool:
        """Whether a parameter or a local variable of `function` depends on the arguments."""
        name, key = variable.id, (variable.id, variable.lineno, variable.col_offset)
        if key in visited:
            return False
        assignments = _list_last_assignments(function, name, variable.lineno)
        if all(assigned.in_place for assigned in assignments):
            is_parameter = name in _list_all_parameters(function)
            if is_parameter and self._depends_parameter(name, function, visited):
                return True
        return self._depends_assigned(assignments, visited | {key})

    def _depends_parameter(self, name: str, function: _Function, visited: _Visited) -> bool:
        """Whether a parameter gets a value that depends; those of a constructor are arguments."""
        if function.name in {"__init__", "__new__", "__post_init__"}:
            return name != _get_self(function)
        key = ("calls", function.name, name)
        if key in visited:
            return False
        calls = [
            (caller, call)
            for caller in self.functions
            for call in ast.walk(caller)
            if isinstance(call, ast.Call) and get_called_name(call) == function.name
        ]
        parameters = [argument.arg for argument in function.args.args][1:]
        return bool(calls) and all(
            self.depends_value(_find_argument(call, parameters, name), caller, visited | {key}, {})
            for caller, call in calls
        )


def _get_self(function: _Function) -> str:
    return function.args.args[0].arg if function.args.args else ""


def _list_all_parameters(function: _Function) -> set[str]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    variadic = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return {argument.arg for argument in (*positional, *variadic)}


def _find_argument(call: ast.Call, parameters: list[str], name: str) -> ast.expr | None:
    """Return the argument of a call that a parameter gets, None if it gets its default."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    position = parameters.index(name) if name in parameters else len(call.args)
    return call.args[position] if position < len(call.args) else None


def _list_names(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _is_plain_constant(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Constant) and expression.value is not None


def _iter_attribute_assignments(function: _Function, attribute: str) -> Iterator[_Assigned]:
    """Yield what the constructor assigns to `self.attribute`, and changes it with in place."""
    self_name = _get_self(function)

    def is_attribute(expression: ast.AST) -> bool:
        match expression:
            case ast.Attribute(value=ast.Name(id=name), attr=attr):
                return (name, attr) == (self_name, attribute)
            case _:
                return False

    for node in ast.walk(function):
        yield from _iter_assigned(node, function, is_attribute)
        if isinstance(node, ast.Call):
            value = _find_registered_value(node, self_name, attribute)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
                yield _Assigned(function, node, value)


def _list_last_assignments(function: _Function, variable: str, line: int) -> list[_Assigned]:
    """Return what decides the value of a local variable before `line`.

    That is its last assignment outside of branches and loops, and all that follow it.
    """

    def is_variable(expression: ast.AST) -> bool:
        return isinstance(expression, ast.Name) and expression.id == variable

    earlier = [
        assigned
        for node in ast.walk(function)
        if isinstance(node, ast.For) or int(getattr(node, "end_lineno", line)) < line
        for assigned in _iter_assigned(node, function, is_variable)
    ]
    earlier.sort(key=lambda assigned: int(getattr(assigned.node, "lineno", 0)))
    statements = {id(statement) for statement in function.body}
    last_indices = [
        index
        for index, assigned in enumerate(earlier)
        if id(assigned.node) in statements and not assigned.in_place
    ]
    return earlier[max(last_indices, default=0) :]


def _iter_assigned(
    node: ast.AST, function: _Function, is_target: Callable[[ast.AST], bool]
) -> Iterator[_Assigned]:
    """Yield what a statement or call assigns to a target, or changes it with in place."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield from _iter_assigned_parts(node, target, value, function, is_target)
        case ast.AnnAssign(target=target, value=ast.expr() as value) if is_target(target):
            yield _Assigned(function, node, value)
        case ast.AugAssign(target=target, value=value) if is_target(_strip_index(target)):
            yield _Assigned(function, node, value, in_place=True)
        case ast.For(target=target, iter=iterable) if any(map(is_target, ast.walk(target))):
            yield _Assigned(function, node, iterable)
        case ast.Call(args=[written, value, *_]) if get_called_name(node) == "constant_":
            if is_target(written):
                yield _Assigned(function, node, value, in_place=True)
        case ast.Call(func=ast.Attribute(value=receiver, attr=name)) if name.endswith("_"):
            if is_target(_strip_index(receiver)):
                yield _Assigned(function, node, node, in_place=True)
        case _:
            pass


def _iter_assigned_parts(
    node: ast.Assign,
    target: ast.expr,
    value: ast.expr,
    function: _Function,
    is_target: Callable[[ast.AST], bool],
) -> Iterator[_Assigned]:
    if is_target(target):
        yield _Assigned(function, node, value)
    elif isinstance(target, ast.Subscript) and is_target(_strip_index(target)):
        yield _Assigned(function, node, value, in_place=True)
    elif isinstance(target, ast.Tuple | ast.List):
        values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
        for part, part_value in zip(target.elts, values, strict=False):
            yield from _iter_assigned_parts(node, part, part_value, function, is_target)


def _strip_index(expression: ast.expr) -> ast.expr:
    """Return `x` of x[0], x.data and x.data[0]."""
    while True:
        match expression:
            case ast.Subscript(value=inner) | ast.Attribute(value=inner, attr="data"):
                expression = inner
            case _:
                return expression


def _find_registered_value(call: ast.Call, self_name: str, attribute: str) -> ast.expr | None:
    """Return the value of self.register_buffer("attribute", value) or setattr(self, ...)."""
    if get_called_name(call) not in {"register_buffer", "setattr", "__setattr__"}:
        return None
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    named_arguments = [keywords[name] for name in ("name", "tensor") if name in keywords]
    match call.func, [*call.args, *named_arguments]:
        case ast.Attribute(value=ast.Name(id=owner)), [ast.Constant(value=name), value, *_]:
            pass
        case _, [ast.Name(id=owner), ast.Constant(value=name), value, *_]:
            pass
        case _:
            return None
    return value if (owner, name) == (self_name, attribute) else None


def _list_operands(expression: ast.expr | None) -> Sequence[ast.expr]:
    """Return the parts of an expression that decide its value; () if it cannot be decided."""
    match expression:
        case (
            ast.Attribute(value=inner)
            | ast.Starred(value=inner)
            | ast.UnaryOp(operand=inner)
            | ast.Subscript(value=inner)
            | ast.NamedExpr(value=inner)
        ):
            return (inner,)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            # Of a list that is repeated, and of zeros, the other factor does not matter.
            deciding = [factor for factor in (left, right) if _decides_product(factor)]
            return deciding[:1] or (left, right)
        case ast.Call():
            return _list_call_operands(expression)
        case ast.BinOp() | ast.BoolOp() | ast.Tuple() | ast.List() | ast.Compare():
            return [node for node in ast.iter_child_nodes(expression) if isinstance(node, ast.expr)]
        case _:
            return ()


def _decides_product(factor: ast.expr) -> bool:
    """Whether a factor is a list, which is repeated, or zero, whatever the other factor is."""
    match factor:
        case ast.List() | ast.Tuple() | ast.ListComp():
            return True
        case ast.Constant(value=value):
            return value == 0
        case ast.Call():
            return get_called_name(factor) in _ZERO_FILLS
        case _:
            return False


def _list_call_operands(call: ast.Call) -> Sequence[ast.expr]:
    """Return the arguments, and the receiver, that decide the value of a call."""
    name = get_called_name(call)
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    if receiver is not None and _is_library(receiver):
        receiver = None
        is_known = True
    else:
        is_known = name in _BUILTINS or name in _OPERAND_FUNCTIONS or name in _WRAPPERS
    is_class = name[:1].isupper() and name not in _WRAPPERS
    if name in _FILLS or is_class:
        # What an object of another class holds is not in sight.
        return ()
    if name in _FILL_VALUE_POSITIONS:
        position = _FILL_VALUE_POSITIONS[name]
        fill_values = [k.value for k in call.keywords if k.arg in {"fill_value", "value"}]
        return [*call.args[position : position + 1], *fill_values]
    keyword_values = [k.value for k in call.keywords if k.arg in _VALUE_KEYWORDS]
    if receiver is not None:
        return _list_method_operands(name, receiver, [*call.args, *keyword_values])
    if name in _PATTERNS:
        return [*_iter_all_arguments(call.args), *keyword_values]
    if not is_known:
        return ()
    takes_all = name in _OPERAND_FUNCTIONS or name in _BUILTINS
    return [*(call.args if takes_all else call.args[:1]), *keyword_values]


def _list_method_operands(
    name: str, receiver: ast.expr, arguments: list[ast.expr]
) -> Sequence[ast.expr]:
    if name in _OPERAND_FUNCTIONS:
        return [receiver, *arguments]
    return [receiver] if name in _RECEIVER_METHODS or name in _WRAPPERS else ()


def _iter_all_arguments(arguments: Iterable[ast.expr]) -> Iterator[ast.expr]:
    """Yield the arguments, and those of the calls among them: the sizes of torch.tril's ones."""
    for argument in arguments:
        yield argument
        if isinstance(argument, ast.Call):
            yield from argument.args


def _is_library(receiver: ast.expr) -> bool:
    while isinstance(receiver, ast.Attribute):
        receiver = receiver.value
    return isinstance(receiver, ast.Name) and receiver.id in _LIBRARIES
