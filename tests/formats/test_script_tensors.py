"""Every kind of tensor in a TorchScript archive is described as torch.jit.load makes it."""

import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.errors import PlanError
from ckptool.formats import open_checkpoint
from ckptool.model import TensorInfo


class Holder(torch.nn.Module):
    """A module with one buffer."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)

    def forward(self, x):
        return x


def _view_bytes(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(4 * dtype.itemsize, dtype=torch.uint8).view(dtype)


def _quantize_channels() -> torch.Tensor:
    scales, zero_points = torch.ones(2), torch.zeros(2)
    return torch.quantize_per_channel(torch.ones(2, 2), scales, zero_points, 0, torch.qint8)


_DTYPES = [
    *("bool", "bfloat16", "bits8", "bits16", "complex64", "int4", "uint4", "uint16", "uint32"),
    *("uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "float4_e2m1fn_x2"),
]
KINDS: dict[str, Callable[[], torch.Tensor]] = {
    **{
        name: partial(_view_bytes, getattr(torch, name)) for name in _DTYPES if hasattr(torch, name)
    },
    "complex32": lambda: torch.ones(2, dtype=torch.complex64).to(torch.complex32),
    "sparse_coo": lambda: torch.eye(2).to_sparse(),
    "not coalesced": lambda: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (2,)),
    "requires a gradient": lambda: torch.eye(2).to_sparse().requires_grad_(),
    "sparse_csr": lambda: torch.eye(2).to_sparse_csr(),
    "meta": lambda: torch.empty(2, 3, device="meta"),
    "expanded": lambda: torch.ones(1, 3).expand(4, 3),
    "conjugate": lambda: torch.tensor([1 + 1j, 2 - 1j]).conj(),
    "negative": lambda: torch.tensor([1 + 1j]).conj().imag,
    "per tensor": lambda: torch.quantize_per_tensor(torch.ones(2), 0.5, 1, torch.qint8),
    "per channel": _quantize_channels,
}


def _save(path: Path, tensor: torch.Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(Holder(tensor)), path)
    return path


@pytest.fixture(autouse=True)
def _without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so are quantized and sparse CSR tensors
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_described_as_it_is_loaded(kind: str, tmp_path: Path) -> None:
    path = _save(tmp_path / "script.pt", KINDS[kind]())
    loaded = torch.jit.load(path).held
    checkpoint = open_checkpoint(path)
    held: TensorInfo = checkpoint.states[0].tensors["held"]
    assert (held.shape, f"torch.{held.dtype}") == (tuple(loaded.shape), str(loaded.dtype))
    assert (held.requires_grad, held.is_on_meta) == (loaded.requires_grad, loaded.is_meta)
    is_plain = loaded.layout is torch.strided and not loaded.is_quantized
    if not is_plain:
        assert held.parts
    assert ("conj" in held.layout, "neg" in held.layout) == (
        is_plain and loaded.is_conj(),
        is_plain and loaded.is_neg(),
    )
    assert not [use for use in checkpoint.globals if use.safety != "safe"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "meta"])
def test_it_is_compared_with_its_values(kind: str, tmp_path: Path) -> None:
    paths = [_save(tmp_path / f"{number}.pt", KINDS[kind]()) for number in range(2)]
    assert ckptool.diff(*paths).verdict == "identical"
    digests = [ckptool.digest(path).checkpoints[0].digest for path in paths]
    assert digests[0] == digests[1]
    assert not digests[0].startswith("partial")


def test_a_python_pickle_may_not_name_the_storages_of_torchscript(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "plain.pt"
    torch.save({"w": torch.ones(2, dtype=torch.float64)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"DoubleStorage", b"UInt64Storage"))
    with pytest.raises(pickle.UnpicklingError, match="UInt64Storage"):
        torch.load(path, weights_only=True)
    assert "UInt64Storage" in ckptool.inspect(path).checkpoints[0].damage


@pytest.mark.parametrize("kind", ["sparse_coo", "per channel"])
def test_what_a_file_of_plain_tensors_cannot_have_is_refused_in_one_line(
    kind: str, tmp_path: Path
) -> None:
    path = _save(tmp_path / "script.pt", KINDS[kind]())
    with pytest.raises(PlanError, match=r"`held` is .*: only plain tensors are written"):
        ckptool.convert(path, tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()
