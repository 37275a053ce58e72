"""Two files of any kind of tensor: the verdict is what torch says of their values."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import save
from torch.nested._internal import nested_tensor

import ckptool


class Subclass(torch.Tensor):
    """A tensor subclass without anything of its own."""


def _count(step: int) -> torch.Tensor:
    return torch.arange(6.0) + step


def _make_complex(step: int) -> torch.Tensor:
    return torch.complex(_count(step), _count(step + 1)).reshape(2, 3)


def _make_jagged(step: int) -> torch.Tensor:
    rows = [torch.arange(3.0) + step, torch.arange(2.0)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def _make_jagged_with_lengths(step: int) -> torch.Tensor:
    starts, lengths = torch.tensor([0, 0]), torch.tensor([3, 2])
    values = torch.arange(12.0).reshape(2, 3, 2) + step
    return torch.nested.narrow(values, 1, starts, lengths, layout=torch.jagged)


def _make_packed(dtype: torch.dtype) -> Callable[[int], torch.Tensor]:
    def make(step: int) -> torch.Tensor:
        values = torch.arange(8.0).reshape(2, 4) / 4 + torch.tensor([[0.0], [0.5 * step]])
        scales, zero_points = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0])
        return torch.quantize_per_channel(values, scales, zero_points, 0, dtype)

    return make


KINDS: dict[str, Callable[[int], torch.Tensor]] = {
    "conjugate": lambda step: _make_complex(step).conj(),
    "conjugate transpose": lambda step: _make_complex(step).mH,
    "negative imaginary part": lambda step: _make_complex(step).conj().imag,
    "negative real part": lambda step: torch._neg_view(_count(step)),
    "negative conjugate": lambda step: torch._neg_view(_make_complex(step).conj()),
    "negative bfloat16": lambda step: torch._neg_view(_count(step).bfloat16()),
    "conjugate complex128": lambda step: _make_complex(step).to(torch.complex128).conj(),
    "jagged": _make_jagged,
    "jagged with lengths": _make_jagged_with_lengths,
    "4 bits": _make_packed(torch.quint4x2),
    "2 bits": _make_packed(torch.quint2x4),
}


def _list_bytes(tensor: torch.Tensor) -> list[bytes]:
    """Return the bytes of a tensor's elements, as torch has them."""
    if tensor.is_nested:
        return [_list_bytes(row)[0] for row in tensor.unbind()]
    if tensor.is_quantized:
        packed_nbytes = tensor.numel() // (2 if tensor.dtype == torch.quint4x2 else 4)
        return [bytes(tensor.untyped_storage())[:packed_nbytes]]
    plain_tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return [bytes(plain_tensor.clone().untyped_storage())]


def _compare(old: Path, new: Path) -> str:
    return ckptool.diff(old, new).verdict


@pytest.fixture(autouse=True)
def _without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested and quantized tensors are prototypes
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_every_kind_are_compared(kind: str, tmp_path: Path) -> None:
    make = KINDS[kind]
    paths = [save(tmp_path / f"{n}.pt", {"x": make(step)}) for n, step in enumerate((0, 0, 1))]
    first, same, other = (torch.load(path, weights_only=False)["x"] for path in paths)
    assert _list_bytes(first) == _list_bytes(same) != _list_bytes(other)
    assert _compare(paths[0], paths[1]) == "identical"
    assert _compare(paths[0], paths[2]) == _compare(paths[2], paths[0]) == "values differ"
    digests = [ckptool.digest(path).checkpoints[0].digest for path in paths]
    assert digests[0] == digests[1] != digests[2]
    assert not any(digest.startswith("partial") for digest in digests)


def test_tensors_without_values_are_compared_by_shape_and_dtype(tmp_path: Path) -> None:
    def save_meta(name: str, *size: int, dtype: torch.dtype = torch.float32) -> Path:
        tensor = torch.empty(size, dtype=dtype, device="meta")
        return save(tmp_path / name, {"x": tensor, "w": torch.ones(2)})

    old, same, other = (save_meta(f"{n}.pt", size) for n, size in enumerate((2, 2, 3)))
    assert _compare(old, old) == _compare(old, same) == "identical"
    assert _compare(old, other) == "breaking"
    assert _compare(old, save_meta("half.pt", 2, dtype=torch.float16)) == "compatible"
    filled = save(tmp_path / "filled.pt", {"x": torch.ones(2), "w": torch.ones(2)})
    assert not torch.load(filled)["x"].is_meta
    assert _compare(old, filled) == _compare(filled, old) == "compatible"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "conj" in kind or "neg" in kind])
def test_a_sign_view_is_compared_with_its_elements(kind: str, tmp_path: Path) -> None:
    view = save(tmp_path / "view.pt", {"x": KINDS[kind](0)})
    elements = KINDS[kind](0).resolve_conj().resolve_neg().contiguous()
    resolved = save(tmp_path / "resolved.pt", {"x": elements})
    assert torch.equal(torch.load(view)["x"], torch.load(resolved)["x"])
    assert _compare(view, resolved) == _compare(resolved, view) == "identical"


def test_states_whose_joined_names_are_equal_are_both_compared(tmp_path: Path) -> None:
    def save_pair(name: str, step: int) -> Path:
        content = {"a.b": {"w": torch.zeros(2) + step}, "a": {"b.w": torch.zeros(2)}}
        return save(tmp_path / name, content)

    old, new = save_pair("old.pt", 0), save_pair("new.pt", 1)
    first, second = (torch.load(path)["a.b"]["w"] for path in (old, new))
    assert not torch.equal(first, second)
    assert _compare(old, new) == _compare(new, old) == "values differ"


def _loads_strictly(path: Path) -> bool:
    module = torch.nn.Linear(3, 3, bias=False)
    try:
        module.load_state_dict(torch.load(path, weights_only=False))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: weight.numpy(),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to_sparse_csr(),
        lambda weight: torch.quantize_per_tensor(weight, 0.5, 0, torch.qint8),
    ],
    ids=["array", "sparse_coo", "sparse_csr", "quantized"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_form_that_no_longer_loads_is_breaking(
    make: Callable[[torch.Tensor], Any], legacy: bool, tmp_path: Path
) -> None:
    weight = torch.eye(3)
    old = save(tmp_path / "old.pt", {"weight": weight})
    how = {"_use_new_zipfile_serialization": not legacy}
    new = save(tmp_path / "new.pt", {"weight": make(weight)}, **how)
    assert _loads_strictly(old)
    assert not _loads_strictly(new)
    assert _compare(old, new) == "breaking"


def test_an_array_that_becomes_a_tensor_is_named(tmp_path: Path) -> None:
    old = save(tmp_path / "old.pt", {"weight": np.eye(3, dtype="f4")})
    new = save(tmp_path / "new.pt", {"weight": torch.eye(3)})
    assert not _loads_strictly(old)
    assert _loads_strictly(new)
    report = ckptool.diff(old, new)
    assert report.verdict == "compatible"
    assert "was a NumPy array, float32 [3, 3] and is float32 [3, 3]" in report.findings[0].message


def test_another_class_of_a_tensor_is_not_identical(tmp_path: Path) -> None:
    old = save(tmp_path / "old.pt", {"x": torch.ones(2).as_subclass(Subclass)})
    new = save(tmp_path / "new.pt", {"x": torch.ones(2)})
    classes = [type(torch.load(path, weights_only=False)["x"]) for path in (old, new)]
    assert classes == [Subclass, torch.Tensor]
    assert _compare(old, new) == _compare(new, old) == "plain data differs"


@pytest.mark.parametrize("holder", [torch.nn.Parameter, lambda t: t.as_subclass(Subclass)])
def test_a_tensor_that_is_an_attribute_of_another_is_compared(
    holder: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    def save_with(name: str, value: float) -> Path:
        tensor: Any = holder(torch.ones(2))
        tensor.scale = torch.tensor(value)
        return save(tmp_path / name, {"x": tensor})

    old, new = save_with("old.pt", 1.0), save_with("new.pt", 2.0)
    loaded = [torch.load(path, weights_only=False)["x"].scale for path in (old, new)]
    assert not torch.equal(*loaded)
    report = ckptool.diff(old, new)
    assert report.verdict == "plain data differs"
    assert [place.rpartition(".")[2] for place in report.changed_entries] == ["scale"]
    assert _compare(old, old) == _compare(new, new) == "identical"


def test_an_argument_of_a_jagged_tensor_that_is_no_attribute_is_compared(tmp_path: Path) -> None:
    """Its constructor gets the values; a crafted file may leave the attributes out."""

    def save_with(name: str, ragged_index: int) -> Path:
        fields = {"values": torch.ones(3, 3), "offsets": torch.tensor([0, 3])}
        return save(tmp_path / name, {"x": Jagged({**fields, "_ragged_idx": ragged_index})})

    old, new = save_with("old.pt", 1), save_with("new.pt", 2)
    loaded = [torch.load(path, weights_only=False)["x"]._ragged_idx for path in (old, new)]
    assert loaded == [1, 2]
    assert _compare(old, new) == "plain data differs"
    assert _compare(old, old) == "identical"


class Jagged:
    """Pickled as a jagged tensor without attributes."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __reduce__(self):
        arguments = (nested_tensor._rebuild_njt, nested_tensor.NestedTensor, (self.fields,), {})
        return torch._tensor._rebuild_from_type_v2, arguments
