"""The arrays of joblib.dump: their bytes stand in the stream, after the object that describes them.

joblib reads them where it builds that object. A plain unpickler goes on at the same position and
fails: before the bytes there is the length of their padding, which is no opcode. Without it, as
before joblib 1.1, the bytes could be read as opcodes as well, and the file is refused.
"""

from math import prod
from typing import Any, Final

from ckptool.formats.pickle.machine import PickleMachine
from ckptool.formats.pickle.nodes import (
    GlobalName,
    PickleError,
    TruncatedPickleError,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import NUMPY_DTYPES, is_shape, read_dtype_code
from ckptool.model import DTYPE_BITS

_WRAPPER: Final = ("joblib.numpy_pickle", "NumpyArrayWrapper")
_FROMBUFFER: Final = ("numpy._core.numeric", "_frombuffer")
_LEAST_OPCODE: Final = 0x28
"""The lowest byte that is an opcode, MARK."""


def is_joblib_wrapper(target: UnresolvedObject) -> bool:
    """Return whether a node is the object that joblib writes before the bytes of an array."""
    cls = getattr(target.func, "cls", target.func)
    return type(cls) is GlobalName and (cls.module, cls.name) == _WRAPPER


def read_joblib_array(m: PickleMachine, target: UnresolvedObject, state: Any, pos: int) -> int:
    """Make `target` the node of a NumPy array with the bytes at `pos`; return their end.

    Raises:
        PickleError: it is an array of objects, or of a joblib that does not align arrays.
        TruncatedPickleError: the data end within it.
    """
    fields = state if isinstance(state, dict) else {}
    shape, dtype = fields.get("shape"), fields.get("dtype")
    name = NUMPY_DTYPES.get(read_dtype_code(dtype)[0])
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
