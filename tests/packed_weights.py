"""Quantised modules, whose weights are in packed objects, as torch saves them in each way."""

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao import quantization

ENGINE = "fbgemm"


@contextmanager
def quantization_engine() -> Iterator[None]:
    """Set an engine that packs weights, and leave out torch's warnings of deprecation."""
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = ENGINE
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = quantization.QuantStub()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.dequant = quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc(self.conv(self.quant(x)).mean((2, 3))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.embedding(x))[0]


def quantize_dynamically(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return quantization.quantize_dynamic(Classifier().eval(), {nn.Linear}, dtype=torch.qint8)


def quantize_statically(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = Convolutional().eval()
    module.qconfig = quantization.get_default_qconfig(ENGINE)
    quantization.prepare(module, inplace=True)
    module(torch.randn(2, 3, 8, 8))
    return quantization.convert(module, inplace=True)


def quantize_recurrent(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    qconfigs = {
        nn.LSTM: quantization.default_dynamic_qconfig,
        nn.Embedding: quantization.float_qparams_weight_only_qconfig,
    }
    return quantization.quantize_dynamic(Recurrent().eval(), qconfigs)


def script_quantized(path: Path, seed: int) -> Path:
    """Save a dynamically quantised module as TorchScript."""
    with quantization_engine():
        torch.jit.script(quantize_dynamically(seed)).save(path)
    return path


def rename_compiled_class(path: Path, namespace: str, new_namespace: str) -> None:
    """Replace the namespace of the compiled classes that an archive's pickle names."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            old, new = (f"torch.classes.{name}".encode() for name in (namespace, new_namespace))
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
