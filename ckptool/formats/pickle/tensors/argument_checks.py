"""Arguments of a pickled call that rebuilds a tensor -> the same values, checked."""

from typing import Any, Final, TypeGuard

from ckptool.formats.pickle.nodes import GlobalName, PickleTreeError, UnresolvedObject
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.model import DTYPE_BITS

TENSOR_CLASSES: Final = frozenset(
    {
        ("torch", "Tensor"),
        ("torch._tensor", "Tensor"),
        ("torch.nn.parameter", "Buffer"),
        ("torch.nn.parameter", "Parameter"),
    }
)
"""(module, name) of the classes of plain tensors, as a state_dict has them."""
DATA_ATTRIBUTES: Final = frozenset(
    [
        *("__class__", "__dict__", "_backward_hooks", "_grad", "_grad_fn"),
        *("_post_accumulate_grad_hooks", "data", "grad", "grad_dtype", "imag", "names", "real"),
        *("requires_grad", "volatile"),
    ]
)
"""Attributes of torch.Tensor that can be set: none is in the `__dict__` that torch saves."""
MAX_SIZE: Final = 1 << 63
_MAX_PRINTED_BITS: Final = 256
_DIFFERENTIABLE_PREFIXES: Final = ("float", "bfloat", "complex")


def read_dtype(node: object) -> str:
    """Return "float32" for the global torch.float32.

    Raises:
        PickleTreeError: it is no dtype of torch.
    """
    if type(node) is GlobalName and node.module == "torch" and node.name in DTYPE_BITS:
        return node.name
    raise PickleTreeError("a tensor's dtype is not one of torch's")


def is_size_or_stride(numbers: object) -> TypeGuard[tuple[int, ...]]:
    """Whether `numbers` is a tuple or torch.Size of ints from 0 to 2**63 - 1."""
    if not isinstance(numbers, tuple):
        return False
    for number in numbers:  # noqa: SIM110 - a generator takes twice as long, 200,000 times
        if type(number) is not int or not 0 <= number < MAX_SIZE:
            return False
    return True


def format_short(value: object) -> str:
    """Return an int or up to 8 ints as text; for anything else "of type ..."."""
    if type(value) is int:
        return (
            str(value) if value.bit_length() < _MAX_PRINTED_BITS else f"{value.bit_length()} bits"
        )
    if isinstance(value, tuple) and all(
        type(n) is int and n.bit_length() < _MAX_PRINTED_BITS for n in value
    ):
        return str(list(value[:8])) + ("..." if len(value) > 8 else "")
    return f"of type {type(value).__name__}"


def check_args(node: UnresolvedObject, key: str, min_args: int, max_args: int) -> tuple[Any, ...]:
    if not min_args <= len(node.args) <= max_args:
        raise PickleTreeError(f"{quote_name(key)} is rebuilt from {len(node.args)} arguments")
    return node.args


def read_requires_grad(flag: object, dtype: str, key: str) -> bool:
    """Return `requires_grad`.

    Raises:
        PickleTreeError: it is no bool, or True for a dtype that cannot have a gradient.
    """
    if type(flag) is not bool:
        raise PickleTreeError(f"{quote_name(key)} has a requires_grad of {type(flag).__name__}")
    if flag and not dtype.startswith(_DIFFERENTIABLE_PREFIXES):
        raise PickleTreeError(f"{quote_name(key)} is {dtype} but marked as requiring a gradient")
    return flag


def check_attributes(attributes: object, key: str) -> tuple[object, ...]:
    """Return the mappings that torch sets as attributes: one, or one and that of __slots__.

    Raises:
        PickleTreeError: one of them would give the tensor other data, or another class.
    """
    mappings = attributes if type(attributes) is tuple else (attributes,)
    for mapping in mappings:
        if isinstance(mapping, dict) and not DATA_ATTRIBUTES.isdisjoint(mapping):
            name = next(iter(DATA_ATTRIBUTES.intersection(mapping)))
            raise PickleTreeError(f"{quote_name(key)} has its attribute `{name}` replaced")
    return mappings
