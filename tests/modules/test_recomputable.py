"""A buffer that a file lacks is recomputable only where torch computes the same without it."""

import numpy as np
import pytest
import torch
from modules import waiting_buffers
from modules.waiting_buffers import INPUT, N, Trainer, calibrate

from ckptool.model import Constancy
from ckptool.modules import ModuleSpec, examine_module
from ckptool.modules.tensors.fill import find_blank_fill


def train(module):
    module.train()
    with torch.no_grad():
        module(INPUT)


def fill(*names):
    """Return code as a training loop or a loader runs it: the buffers get other values."""

    def use(module):
        for name in names:
            buffer = module.get_buffer(name)
            buffer.copy_(~buffer if buffer.dtype == torch.bool else buffer.new_full((), 3))

    return use


def leave(module):
    """The module is used, and nothing writes the buffer."""
    module.eval()
    module(INPUT)


FROM_SIZES = (
    *("zeros", "ones", "like", "full", "full_of", "moved", "listed", "stacked", "new", "local"),
    *("product", "constant", "branch", "unseen", "minus", "borrowed"),
)
FROM_ARGUMENTS = (
    *("is_used", "use_bias", "scale", "offsets", "is_exact", "weights", "flags", "floor", "gain"),
    *("steps", "filled", "bound", "chosen"),
)
WAITING = [
    ("RouterBias", "shift", fill("shift")),
    ("PackedWeight", "qweight", fill("qweight")),
    ("Codebook", "initted", train),
    ("Codebook", "cluster_size", train),
    ("Codebook", "embed_avg", train),
    ("ObservationMean", "mean", lambda module: module.update(INPUT + 1)),
    ("ObservationMean", "var", lambda module: module.update(torch.rand(5, N))),
    ("ObservationMean", "count", lambda module: module.update(torch.rand(5, N))),
    ("RunningMaximum", "peak", train),
    ("RunningMaximum", "floor", train),
    ("Uninitialised", "shift", fill("shift")),
    ("ParentCopies", "child.shift", train),
    ("ParentAssigns", "child.shift", train),
    ("ParentLoops", "layers.0.shift", train),
    ("ParentLoops", "layers.1.shift", train),
    ("OwnLoops", "level", train),
    ("ByRegistry", "shift", train),
    ("ByRegistry", "scale", train),
    ("ByRegistry", "power", train),
    ("ByRegistry", "offset", train),
    ("ByHook", "shift", train),
    ("ByHook", "count", train),
    ("Calibrated", "center", lambda module: calibrate(module, INPUT)),
    ("Recalibrated", "obs.level", lambda module: Trainer(module).step(INPUT)),
    *(("FromSizes", name, fill(name)) for name in FROM_SIZES),
]
RECOMPUTABLE = [
    ("CausalMask", "mask"),
    ("InfiniteMask", "mask"),
    ("EmptyTable", "table"),
    ("ParentCopies", "child.other"),
    ("ParentLoops", "layers.1.other"),
    ("OwnLoops", "scale"),
    *(("FromArguments", name) for name in FROM_ARGUMENTS),
]


def describe(name):
    return examine_module(ModuleSpec(f"modules.waiting_buffers:{name}"))


def computes_the_same_without(name, key, use):
    """Ask torch: the outputs of a used module, and of a fresh one with its file but for `key`."""
    torch.manual_seed(0)
    module = getattr(waiting_buffers, name)()
    use(module)
    state = {k: v.clone() for k, v in module.state_dict().items() if k != key}
    torch.manual_seed(0)
    fresh = getattr(waiting_buffers, name)()
    assert fresh.load_state_dict(state, strict=False).missing_keys == [key]
    outputs = [m.eval()(INPUT) for m in (module, fresh)]
    return torch.equal(*outputs)


@pytest.mark.parametrize(("name", "key", "use"), WAITING, ids=[f"{n}.{k}" for n, k, _ in WAITING])
def test_a_value_that_waits_for_data(name, key, use):
    assert not computes_the_same_without(name, key, use)
    assert not describe(name).tensors[key].is_recomputable


@pytest.mark.parametrize(("name", "key"), RECOMPUTABLE, ids=[f"{n}.{k}" for n, k in RECOMPUTABLE])
def test_a_value_that_the_constructor_makes_again(name, key):
    assert computes_the_same_without(name, key, leave)
    assert describe(name).tensors[key].is_recomputable


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(3), "zeros"),
        (torch.ones(2, 2, dtype=torch.float8_e4m3fn), "ones"),
        (torch.full((2,), -1), "-1"),
        (torch.zeros(3, dtype=torch.bool), "False"),
        (torch.zeros(2, dtype=torch.complex64), "zeros"),
        (torch.zeros(1).expand(5), "zeros"),
        (torch.zeros(3).to_sparse(), "zeros"),
        (torch.full((3,), -torch.inf), "infinities or NaN"),
        (torch.tensor([torch.nan, torch.inf]), "infinities or NaN"),
        (torch.full((2,), torch.iinfo(torch.int64).max), "the largest numbers of its dtype"),
        (torch.full((3, 3), -torch.inf).triu(1), ""),
        (torch.eye(3).to_sparse(), ""),
        (torch.zeros(0), ""),
        (torch.full((2,), 0.5), ""),
        (torch.full((2,), 255, dtype=torch.uint8), ""),
        (torch.zeros(2, device="meta"), ""),
        (torch.empty(2, dtype=torch.bits8), ""),
        (np.zeros(2), ""),
    ],
)
def test_the_words_for_one_value(value, words):
    assert find_blank_fill(value) == words


def test_memory_that_the_constructor_leaves_is_no_value():
    """Whatever the memory held, and whether or not it held it twice."""
    tensor = describe("Uninitialised").tensors["shift"]
    assert tensor.constancy is Constancy.UNKNOWN
    assert not torch.are_deterministic_algorithms_enabled()
