"""Two mappings of tensors -> Missing, Unexpected, Changed."""

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo
from ckptool.values.sign_views import SIGN_VIEWS

COMPARED_FIELDS: Final = ("shape", "dtype", "layout", "is_array")
"""Fields of TensorInfo that are compared between two files."""
DENSE_LAYOUTS: Final = frozenset({"strided", "chunked"}) | SIGN_VIEWS
"""Layouts of dense tensors: they differ only in how the container stores the elements."""


class Missing(Struct, frozen=True):
    """In `expected`, not in `actual`: load_state_dict's missing_keys."""

    expected: TensorInfo

    @property
    def key(self) -> str:
        return self.expected.key


class Unexpected(Struct, frozen=True):
    """In `actual`, not in `expected`: load_state_dict's unexpected_keys."""

    actual: TensorInfo

    @property
    def key(self) -> str:
        return self.actual.key


class Changed(Struct, frozen=True):
    """In both, with different values of `fields`."""

    expected: TensorInfo
    actual: TensorInfo
    fields: frozenset[str]

    @property
    def key(self) -> str:
        return self.expected.key


Change = Missing | Unexpected | Changed


def iter_changes(
    expected: Mapping[str, TensorInfo], actual: Mapping[str, TensorInfo], fields: Iterable[str]
) -> Iterator[Change]:
    """Yield missing, changed and unexpected tensors: in the order of `expected`, then `actual`.

    Only `fields` of TensorInfo are compared.
    """
    field_names = tuple(fields)
    get_fields = attrgetter(*field_names)
    for key, expected_tensor in expected.items():
        actual_tensor = actual.get(key)
        if actual_tensor is None:
            yield Missing(expected_tensor)
        elif get_fields(expected_tensor) != get_fields(actual_tensor):
            changed_fields = frozenset(
                f for f in field_names if getattr(expected_tensor, f) != getattr(actual_tensor, f)
            )
            yield Changed(expected_tensor, actual_tensor, changed_fields)
    for key, actual_tensor in actual.items():
        if key not in expected:
            yield Unexpected(actual_tensor)


def breaks_loading(change: Changed) -> bool:
    """Whether a module that loads the one tensor does not load the other.

    torch copies neither arrays, nor between sparse, nested, quantized and dense tensors.
    """
    old, new = change.expected, change.actual
    layouts_differ = old.layout != new.layout and not {old.layout, new.layout} <= DENSE_LAYOUTS
    return "shape" in change.fields or layouts_differ or (new.is_array and not old.is_array)


def is_scalar_quirk(change: Changed) -> bool:
    """Whether torch loads a tensor of shape [1] into one of shape [] (of torch before 0.4)."""
    return change.expected.shape == () and change.actual.shape == (1,)


def is_shape_mismatch(change: Changed) -> bool:
    """Whether torch cannot copy the tensor: the shapes differ, and not as in `is_scalar_quirk`."""
    return "shape" in change.fields and not is_scalar_quirk(change)
