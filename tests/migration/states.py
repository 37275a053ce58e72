"""Strategies: state_dicts with ties, views, empty and zero-dimensional tensors, of every dtype."""

from collections import OrderedDict
from pathlib import Path

import torch
from hypothesis import strategies as st

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where examples are written: every one is synced, and a disk would take most of the time."""
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []),  # since torch 2.7
]  # fmt: skip
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(), (0,), (1,), (3,), (2, 3), (4, 1, 2), (0, 5), (2, 2, 2, 2)]

segments = st.text("abW_é0", min_size=1, max_size=4)
keys = st.lists(segments, min_size=1, max_size=3).map(".".join)
dtypes = st.sampled_from(DTYPES)
shapes = st.sampled_from(SHAPES)


def filled(shape, dtype, seed=0) -> torch.Tensor:
    """Return a tensor of any bytes that its dtype can have."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    count = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(256, (count,), dtype=torch.uint8, generator=generator)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return data.view(dtype).reshape(shape)


def views(base: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors that share the storage of `base`: all of it, a part, or turned."""
    found = [base, base.detach()]
    if base.dim() and base.shape[0] > 1:
        found += [base[1:], base[::2]]
    return [*found, base.t()] if base.dim() == 2 else found


@st.composite
def state_dicts(draw, dtypes=dtypes, least=1):
    """Return an OrderedDict as Module.state_dict() gives it, with some tensors that share."""
    state = OrderedDict()
    for number, key in enumerate(draw(st.lists(keys, min_size=least, max_size=6, unique=True))):
        shared = [t for t in state.values() if t.dim()]
        if shared and draw(st.booleans()):
            state[key] = draw(st.sampled_from(views(draw(st.sampled_from(shared)))))
        else:
            state[key] = filled(draw(shapes), draw(dtypes), number)
    if draw(st.booleans()):
        prefixes = {key.rpartition(".")[0] for key in state} | {""}
        state._metadata = OrderedDict((p, {"version": draw(st.integers(1, 3))}) for p in prefixes)
    return state


def ties(state) -> set[frozenset[str]]:
    """Return the groups of keys that are the same elements of the same storage."""
    groups: dict[object, set[str]] = {}
    for key, tensor in state.items():
        if tensor.numel():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            groups.setdefault(place, set()).add(key)
    return {frozenset(group) for group in groups.values() if len(group) > 1}
