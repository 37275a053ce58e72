"""Describe a pickle without tensors, for the error message that refuses it."""

from typing import Any, Final

from ckptool.formats.arrays import numpy_array
from ckptool.formats.nodes import Opaque
from ckptool.formats.plain import printable, text_key, words

_FEW: Final = 3


def without_tensors(root: Any) -> str:
    """Return "holds no tensors, but ..." with its arrays, class or first keys."""
    arrays = sum(numpy_array(node, "") is not None for node in _two_levels(root))
    if arrays:
        count = "one NumPy array" if arrays == 1 else f"{arrays:,} NumPy arrays"
        return f"holds no tensors, but {count}: torch.save them as torch.from_numpy(...) of each"
    if type(root) is Opaque:
        return f"holds no tensors, but {words(root)}"
    if isinstance(root, dict) and root:
        names = ", ".join(f"`{printable(text_key(key))}`" for key in list(root)[:_FEW])
        more = f" and {len(root) - _FEW} more" if len(root) > _FEW else ""
        return f"holds no tensors, but a dict with {names}{more}"
    return f"holds no tensors, but {words(root)}"


def _two_levels(root: Any) -> list[Any]:
    first = list(root.values()) if isinstance(root, dict) else [root]
    return first + [n for one in first if isinstance(one, dict) for n in one.values()]
