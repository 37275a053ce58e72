"""Pickled numpy array, of joblib too -> TensorInfo; pickled numpy scalar -> its value."""

from math import prod
from struct import unpack
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from ckptool.formats.pickle.nodes import (
    GlobalName,
    PickleError,
    TruncatedPickleError,
    UnresolvedObject,
)
from ckptool.model import (
    DTYPE_BITS,
    STRUCT_CODES,
    Kind,
    StorageInfo,
    TensorInfo,
    contiguous_stride,
)

if TYPE_CHECKING:
    from ckptool.formats.pickle.machine import PickleMachine

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
    (code, order), data = _read_dtype_code(args[0]), args[1]
    if type(data) is str:  # Python 2 pickles bytes as a string
        data = data.encode("latin-1", "replace")
    letter = STRUCT_CODES.get(NUMPY_DTYPES.get(code, ""), "")
    if type(data) is not bytes or not letter or len(data) != int(code[1:]):
        return None
    number: float = unpack(f"{order}{letter}", data)[0]
    return number


def _read_dtype_code(dtype: object) -> tuple[str, str]:
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
    code, order = _read_dtype_code(dtype)
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
    return isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)


_WRAPPER: Final = ("joblib.numpy_pickle", "NumpyArrayWrapper")
_FROMBUFFER: Final = ("numpy._core.numeric", "_frombuffer")
_LEAST_OPCODE: Final = 0x28
"""The lowest byte that is an opcode, MARK."""


def is_joblib_wrapper(target: UnresolvedObject) -> bool:
    """Return whether a node is the object that joblib writes before the bytes of an array."""
    cls = getattr(target.func, "cls", target.func)
    return type(cls) is GlobalName and (cls.module, cls.name) == _WRAPPER


def read_joblib_array(m: "PickleMachine", target: UnresolvedObject, state: Any, pos: int) -> int:
    """Make `target` the node of a NumPy array with the bytes at `pos`; return their end.

    joblib.dump writes the bytes of an array after the object that describes it. A plain unpickler
    goes on at the same position and fails: before the bytes there is the length of their padding,
    which is no opcode. Without it, as before joblib 1.1, the bytes could be read as opcodes too,
    and the file is refused.

    Raises:
        PickleError: it is an array of objects, or of a joblib that does not align arrays.
        TruncatedPickleError: the data end within it.
    """
    fields = state if isinstance(state, dict) else {}
    shape, dtype = fields.get("shape"), fields.get("dtype")
    name = NUMPY_DTYPES.get(_read_dtype_code(dtype)[0])
    if name is None or not is_shape(shape):
        raise PickleError("an array of joblib that is not of numbers")
    if type(fields.get("numpy_array_alignment_bytes")) is not int:
        raise PickleError("an array of a joblib before 1.1, whose bytes could be opcodes as well")
    if pos >= len(m.data):
        raise TruncatedPickleError("the data end before the bytes of an array")
    if m.in_frame and pos != m.frame_end:
        raise PickleError("an array of joblib within a frame")
    padding = m.data[pos]
    if padding >= _LEAST_OPCODE:
        raise PickleError("an array of joblib whose padding could be an opcode")
    start = pos + 1 + padding
    end = start + prod(shape) * DTYPE_BITS[name] // 8
    if end > len(m.data):
        raise TruncatedPickleError("the data end within the bytes of an array")
    m.charge_memory(end - start)
    content = bytes(m.data[start:end])
    order = "F" if fields.get("order") == "F" else "C"
    m.frame_end, m.in_frame = len(m.data), False
    target.func, target.args = GlobalName(*_FROMBUFFER), (content, dtype, shape, order)
    return end
