"""Two mappings of tensors -> Missing, Unexpected, Changed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo

COMPARED_FIELDS: Final = ("shape", "dtype", "layout")
"""Fields of TensorInfo that are compared between two files."""


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
    for key, expected_tensor in expected.items():
        actual_tensor = actual.get(key)
        if actual_tensor is None:
            yield Missing(expected_tensor)
        else:
            changed_fields = [
                f for f in field_names if getattr(expected_tensor, f) != getattr(actual_tensor, f)
            ]
            if changed_fields:
                yield Changed(expected_tensor, actual_tensor, frozenset(changed_fields))
    for key, actual_tensor in actual.items():
        if key not in expected:
            yield Unexpected(actual_tensor)


def is_scalar_quirk(change: Changed) -> bool:
    """Whether torch loads a tensor of shape [1] into one of shape [] (of torch before 0.4)."""
    return change.expected.shape == () and change.actual.shape == (1,)
