"""Right side of an assignment -> what it is seen to be, from its source alone: a tensor, None."""

import ast
import re
from enum import StrEnum
from typing import Final

from ckptool.migration.codemod.assignments import AttributeBinding, get_root

_TORCH: Final = frozenset({"torch", "th"})
_NUMPY: Final = frozenset({"np", "numpy"})
_TENSOR_FUNCTIONS: Final = frozenset(
    {"Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor",
     "ByteTensor",
     "abs", "add", "arange", "as_tensor", "asarray", "bartlett_window", "bernoulli", "block_diag",
     "blackman_window", "cat", "ceil", "clamp", "clip", "clone", "complex", "concat", "cos", "cosh",
     "cumprod", "cumsum", "detach", "diag", "diag_embed", "div", "einsum", "empty", "empty_like",
     "exp", "exp2", "expm1", "eye", "fft", "flatten", "flip", "floor", "fmod", "from_numpy", "full",
     "full_like", "gather", "hamming_window", "hann_window", "hstack", "hypot", "ifft", "inverse",
     "irfft", "kaiser_window", "kron", "linspace", "log", "log10", "log1p", "log2", "logspace",
     "logical_and", "logical_not", "logical_or", "masked_fill", "matmul", "maximum", "mean",
     "minimum", "mm", "mul", "multinomial", "neg", "norm", "normal", "ones", "ones_like", "outer",
     "permute", "polar", "pow", "prod", "rand", "rand_like", "randint", "randint_like", "randn",
     "randn_like", "randperm", "reciprocal", "remainder", "repeat_interleave", "reshape", "rfft",
     "rfftfreq", "fftfreq", "roll", "rot90", "round", "rsqrt", "scalar_tensor", "sigmoid", "sign",
     "sin", "sinh", "softmax", "sqrt", "square", "squeeze", "stack", "sub", "sum", "tan", "tanh",
     "tensor", "tile", "transpose", "tril", "tril_indices", "triu", "triu_indices", "unsqueeze",
     "vstack", "where", "zeros", "zeros_like"}
)  # fmt: skip
"""Functions of torch, and methods of a tensor of the same name, that return one tensor."""
_TENSOR_METHODS: Final = _TENSOR_FUNCTIONS | {
    "T", "mT", "H", "bfloat16", "bool", "byte", "contiguous", "cpu", "cuda", "data", "double",
    "expand", "fill_", "fill_diagonal_", "float", "half", "int", "long", "masked_fill_", "mul_",
    "new_full", "new_ones", "new_tensor", "new_zeros", "normal_", "pin_memory", "repeat",
    "requires_grad_", "scatter", "scatter_", "short", "t", "to", "type", "type_as", "uniform_",
    "view", "zero_", "real", "imag", "all", "any", "copy_", "add_", "sub_", "div_", "clamp_",
    "index_fill", "movedim", "unflatten",
}  # fmt: skip
"""Methods and attributes of a tensor that are tensors."""
_ARRAY_METHODS: Final = frozenset({"T", "astype", "copy", "reshape", "transpose"})
_RANDOM: Final = ("rand", "normal", "bernoulli", "multinomial", "uniform", "exponential", "empty")
"""Parts of the names of functions whose values differ from call to call."""
_NOT_ELEMENTWISE: Final = (ast.Is, ast.IsNot, ast.In, ast.NotIn)
_TENSOR_ANNOTATION: Final = re.compile(
    r"[\"']?(Optional\[)?(torch\.)?Tensor\]?( \| None)?[\"']?|None \| (torch\.)?Tensor"
)


class SeenValue(StrEnum):
    """What an expression is seen to be."""

    NONE = "None"
    TENSOR = "tensor"
    """A tensor that is not an nn.Parameter."""
    OPTIONAL_TENSOR = "tensor or None"
    ARRAY = "array"
    ARGUMENT = "argument"
    """An argument without an annotation, whose default is None or missing, or one that
    isinstance(x, torch.Tensor) is asked about: it may still be an nn.Parameter."""
    UNKNOWN = "unknown"


TENSOR_OR_NONE: Final = frozenset(
    {SeenValue.NONE, SeenValue.TENSOR, SeenValue.OPTIONAL_TENSOR, SeenValue.ARGUMENT}
)
"""What register_buffer() accepts; of an argument that is assumed, and said to be so."""


def see_value(  # noqa: C901, PLR0911 - a case each
    value: ast.expr | None, statement: AttributeBinding, attribute: str, depth: int = 6
) -> SeenValue:
    """Return what an expression in the function of a statement is seen to be.

    Args:
        value: the expression.
        statement: in whose function it is.
        attribute: of the module, of which any earlier value is a tensor.
        depth: variables that are followed.
    """

    def see(inner: ast.expr | None) -> SeenValue:
        return see_value(inner, statement, attribute, depth)

    def see_member(owner: ast.expr, name: str) -> SeenValue:
        kind = see(owner)
        members = {SeenValue.TENSOR: _TENSOR_METHODS, SeenValue.ARRAY: _ARRAY_METHODS}
        return kind if name in members.get(kind, ()) else SeenValue.UNKNOWN

    def see_any(*parts: ast.expr) -> SeenValue:
        return SeenValue.TENSOR if SeenValue.TENSOR in {*map(see, parts)} else SeenValue.UNKNOWN

    match value:
        case ast.Constant(value=None):
            return SeenValue.NONE
        case ast.IfExp(test=test, body=body, orelse=orelse):
            checked, is_tensor_if_true = _find_checked(test)
            tensor_arm = body if is_tensor_if_true else orelse
            kinds = [
                SeenValue.ARGUMENT if arm is tensor_arm and _is_name(arm, checked) else see(arm)
                for arm in (body, orelse)
            ]
            return _join(kinds)
        case ast.NamedExpr(value=inner):
            return see(inner)
        case ast.Call(func=ast.Attribute(value=owner, attr=name)):
            if _is_package(owner, _TORCH):
                return SeenValue.TENSOR if name in _TENSOR_FUNCTIONS else SeenValue.UNKNOWN
            return SeenValue.ARRAY if _is_package(owner, _NUMPY) else see_member(owner, name)
        case ast.Attribute(value=owner, attr=name):
            if (get_root(owner), name) == (statement.root, attribute):
                return SeenValue.TENSOR
            return see_member(owner, name)
        case ast.Subscript(value=inner) | ast.UnaryOp(operand=inner):
            return see_any(inner)
        case ast.BinOp(left=left, right=right):
            return see_any(left, right)
        case ast.Compare(left=left, ops=ops, comparators=[right]):
            is_elementwise = not any(isinstance(op, _NOT_ELEMENTWISE) for op in ops)
            return see_any(left, right) if is_elementwise else SeenValue.UNKNOWN
        case ast.Name(id=name) if depth:
            values = _list_values(name, statement)
            return _join([_see_bound(v, statement, attribute, depth - 1) for v in values])
        case _:
            return SeenValue.UNKNOWN


def is_random(value: ast.expr | None) -> bool:
    """Whether an expression calls a function whose values differ from call to call."""
    calls = (node for node in ast.walk(value) if isinstance(node, ast.Call)) if value else ()
    return any(part in _get_called_name(call) for call in calls for part in _RANDOM)


def _find_checked(test: ast.expr) -> tuple[str, bool]:
    """Return the variable of `isinstance(x, torch.Tensor)`, and whether the test is true then."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            name, is_tensor_if_true = _find_checked(inner)
            return name, not is_tensor_if_true
        case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), checked_type]):
            is_tensor = ast.unparse(checked_type) in {"torch.Tensor", "th.Tensor", "Tensor"}
            return (name if is_tensor else ""), True
        case ast.Call(func=ast.Name(id="is_tensor") | ast.Attribute(attr="is_tensor"), args=[arg]):
            return (arg.id if isinstance(arg, ast.Name) else ""), True
        case _:
            return "", True


def _is_name(value: ast.expr, name: str) -> bool:
    return isinstance(value, ast.Name) and value.id == name


def _see_bound(
    bound: "ast.expr | ast.arg | None", statement: AttributeBinding, attribute: str, depth: int
) -> SeenValue:
    if not isinstance(bound, ast.arg):
        return see_value(bound, statement, attribute, depth)
    assert statement.function is not None
    default = find_default(statement.function, bound.arg)
    if default is not None and not (isinstance(default, ast.Constant) and default.value is None):
        return SeenValue.UNKNOWN
    if bound.annotation is None:
        return SeenValue.ARGUMENT
    annotation = ast.unparse(bound.annotation)
    is_tensor = _TENSOR_ANNOTATION.fullmatch(annotation)
    return SeenValue.OPTIONAL_TENSOR if is_tensor else SeenValue.UNKNOWN


def find_default(function: "ast.FunctionDef | ast.AsyncFunctionDef", name: str) -> ast.expr | None:
    """Return the default of an argument, None if it has none."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    count = len(arguments.defaults)
    pairs = [
        *zip(positional[len(positional) - count :], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return next((default for argument, default in pairs if argument.arg == name), None)


def _list_values(name: str, statement: AttributeBinding) -> "list[ast.expr | ast.arg | None]":
    """Return what is assigned to a variable, its argument, and None for what is not followed."""
    values: list[ast.expr | ast.arg | None] = []
    followed: set[ast.AST] = set()
    nodes = [*ast.walk(statement.function)] if statement.function else []
    for node in nodes:
        match node:
            case ast.arg(arg=argument) if argument == name:
                values.append(node)
            case ast.Assign(targets=targets, value=value):
                plain = [t for t in targets if isinstance(t, ast.Name) and t.id == name]
                followed.update(plain)
                values += [value] * bool(plain)
            case ast.AnnAssign(target=ast.Name(id=target), value=value) if target == name:
                followed.add(node.target)
                values += [value] if value is not None else []
            case ast.AugAssign(target=ast.Name(id=target)) if target == name:
                followed.add(node.target)  # a tensor stays one
            case _:
                pass
    stored = (n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    values += [None for node in stored if node.id == name and node not in followed]
    return values


def _join(values: list[SeenValue]) -> SeenValue:
    """Return what a value is that is one of several."""
    kinds = {*values}
    if len(kinds) == 1:
        return values[0]
    if not kinds or not kinds <= TENSOR_OR_NONE:
        return SeenValue.UNKNOWN
    return SeenValue.ARGUMENT if SeenValue.ARGUMENT in kinds else SeenValue.OPTIONAL_TENSOR


def _is_package(owner: ast.expr, names: frozenset[str]) -> bool:
    """Whether it is `torch` or one of its packages of functions: `torch.fft`, `np.linalg`."""
    match owner:
        case ast.Attribute(value=inner, attr="fft" | "linalg" | "special" | "random"):
            return _is_package(inner, names)
        case ast.Name(id=name):
            return name in names
        case _:
            return False


def _get_called_name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
