"""Builders: a test states only what matters to it."""

from pathlib import Path
from types import MappingProxyType

from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Constancy,
    Container,
    Kind,
    ModuleInfo,
    ModuleTensor,
    StateDict,
    StorageInfo,
    TensorInfo,
)


def tensor(key: str, shape: tuple[int, ...] = (2, 3), dtype: str = "float32") -> TensorInfo:
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.insert(0, step)
        step *= size
    storage = StorageInfo(key, step * DTYPE_BITS[dtype] // 8)
    return TensorInfo(key, shape, dtype, tuple(stride), 0, storage)


def tensors(*keys: str | TensorInfo) -> dict[str, TensorInfo]:
    infos = [tensor(k) if isinstance(k, str) else k for k in keys]
    return {info.key: info for info in infos}


def state(*keys: str | TensorInfo, at: str = "", **fields) -> StateDict:
    return StateDict(at=at, tensors=MappingProxyType(tensors(*keys)), **fields)


def checkpoint(
    *states: StateDict, container: Container = Container.TORCH_ZIP, **fields
) -> Checkpoint:
    return Checkpoint(Path("model.pth"), container, 100, states, **fields)


def held(key: str | TensorInfo, kind: Kind = Kind.PARAMETER, **fields) -> ModuleTensor:
    settings = {
        "owner": "modules_for_tests.Some",
        "is_saved": kind in {Kind.PARAMETER, Kind.BUFFER},
        "constancy": Constancy.CONSTANT,
        "follows_to": True,
        "follows_dtype": True,
    }
    return ModuleTensor(tensor(key) if isinstance(key, str) else key, kind, **settings | fields)


def module(*entries: str | ModuleTensor, **fields) -> ModuleInfo:
    all_held = [held(e) if isinstance(e, str) else e for e in entries]
    return ModuleInfo("modules_for_tests:Some", {h.key: h for h in all_held}, **fields)
