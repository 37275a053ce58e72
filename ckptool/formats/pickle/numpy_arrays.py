"""Pickled numpy array -> TensorInfo; pickled numpy scalar -> its value."""

from math import prod
from struct import unpack
from typing import Any, Final, TypeGuard

from ckptool.formats.pickle.nodes import UnresolvedObject
from ckptool.model import (
    DTYPE_BITS,
    STRUCT_CODES,
    Kind,
    StorageInfo,
    TensorInfo,
    contiguous_stride,
)

NUMPY_DTYPES: Final = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32",
    "i2": "int16", "i1": "int8", "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
    "b1": "bool", "c8": "complex64", "c16": "complex128",
}  # fmt: skip
"""numpy's dtype code -> torch's dtype name."""


def read_numpy_scalar(args: tuple[Any, ...]) -> float | None:
    """Return the number of `numpy.core.multiarray.scalar(dtype, bytes)`, None if it is none."""
    if len(args) != 2:
        return None
    (code, order), data = read_dtype_code(args[0]), args[1]
    if type(data) is str:  # Python 2 pickles bytes as a string
        data = data.encode("latin-1", "replace")
    letter = STRUCT_CODES.get(NUMPY_DTYPES.get(code, ""), "")
    if type(data) is not bytes or not letter or len(data) != int(code[1:]):
        return None
    number: float = unpack(f"{order}{letter}", data)[0]
    return number


def read_dtype_code(dtype: object) -> tuple[str, str]:
    """Return code and byte order of a pickled numpy.dtype: ("f4", "<"); ("", "<") if not known."""
    if type(dtype) is UnresolvedObject and dtype.callee_name == ("numpy", "dtype") and dtype.args:
        state = dtype.state
        order = state[1] if type(state) is tuple and len(state) > 1 else "|"
        code = dtype.args[0]
        if type(code) is str and order in {"<", ">", "|", "="}:
            return code, ">" if order == ">" else "<"
    return "", "<"


def read_numpy_array(node: object, key: str) -> TensorInfo | None:
    """Return a pickled numpy array of numbers, with its bytes; None for anything else."""
    if type(node) is not UnresolvedObject:
        return None
    shape: Any = None
    dtype: Any = None
    content: Any = None
    is_fortran = False
    if node.callee_name[1] == "_reconstruct" and type(node.state) is tuple and len(node.state) == 5:
        _, shape, dtype, is_fortran, content = node.state
    elif node.callee_name[1] == "_frombuffer" and len(node.args) == 4:
        content, dtype, shape, order = node.args
        is_fortran = order == "F"
    code, order = read_dtype_code(dtype)
    name = NUMPY_DTYPES.get(code)
    if name is None or not is_shape(shape):
        return None
    stride = contiguous_stride(shape[::-1])[::-1] if is_fortran else contiguous_stride(shape)
    if type(content) is str:  # Python 2 pickles bytes as a string
        content = content.encode("latin-1", "replace")
    nbytes = prod(shape) * DTYPE_BITS[name] // 8
    storage = None
    if isinstance(content, bytes | bytearray) and len(content) == nbytes:
        storage = StorageInfo(
            f"array {key}",
            nbytes,
            byteorder="big" if order == ">" else "little",
            content=bytes(content),
        )
    return TensorInfo(key, shape, name, stride, 0, storage, kind=Kind.ARRAY)


def is_numpy_array(node: object) -> bool:
    """Whether a node is a pickled numpy array of numbers."""
    return (
        type(node) is UnresolvedObject
        and node.callee_name[1] in _ARRAY_FUNCTIONS
        and read_numpy_array(node, "") is not None
    )


_ARRAY_FUNCTIONS: Final = frozenset({"_reconstruct", "_frombuffer"})


def is_shape(shape: object) -> TypeGuard[tuple[int, ...]]:
    """Whether it is a tuple of sizes."""
    return type(shape) is tuple and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
