"""The reference case: one mask, as a plain attribute and as a buffer."""

from paths import ROOT
from reference_case import ARGUMENTS

from ckptool.model import Constancy, Kind
from ckptool.modules import ModuleSpec, examine_module

SOURCE = ROOT / "samples" / "attention.py"
WEIGHTS = ["W_query.weight", "W_key.weight", "W_value.weight"]


def attention(name):
    return examine_module(ModuleSpec(f"samples.attention:{name}", ARGUMENTS))


def line(text):
    found = [n for n, l in enumerate(SOURCE.read_text().splitlines(), 1) if text in l]
    assert len(found) == 1
    return f"samples/attention.py:{found[0]}"


def test_the_mask_without_buffers():
    state = attention("CausalAttentionWithoutBuffers")
    assert list(state.tensors) == [*WEIGHTS, "mask"]
    assert list(state.saved_tensors) == WEIGHTS
    mask = state.tensors["mask"]
    assert (mask.tensor.dtype, mask.tensor.shape, mask.tensor.nbytes) == ("float32", (6, 6), 144)
    assert mask.kind is Kind.ATTRIBUTE
    assert mask.owner == "samples.attention.CausalAttentionWithoutBuffers"
    assert (mask.is_saved, mask.constancy) == (False, Constancy.CONSTANT)
    assert (mask.follows_to, mask.follows_dtype) == (False, False)
    assert mask.assigned_at == line("self.mask = ")
    assert mask.used_at == line("self.mask.bool()")
    assert (mask.written_at, mask.alias_of, mask.is_statistic) == ("", "", False)
    assert state.skipped == ()


def test_the_mask_as_a_buffer():
    state = attention("CausalAttentionWithBuffer")
    assert list(state.tensors) == list(state.saved_tensors) == ["mask", *WEIGHTS]
    mask = state.tensors["mask"]
    assert (mask.kind, mask.constancy) == (Kind.BUFFER, Constancy.CONSTANT)
    assert (mask.follows_to, mask.follows_dtype) == (True, True)
    assert mask.assigned_at == line('self.register_buffer("mask"')
    assert mask.used_at == line("self.mask.bool()")
    assert not mask.is_statistic


def test_both_masks_have_the_same_content():
    without = attention("CausalAttentionWithoutBuffers").tensors["mask"]
    assert without.fingerprint == attention("CausalAttentionWithBuffer").tensors["mask"].fingerprint
    assert len(without.fingerprint) == 64


def test_the_weights():
    weight = attention("CausalAttentionWithBuffer").tensors["W_query.weight"]
    assert (weight.kind, weight.is_saved) == (Kind.PARAMETER, True)
    assert (weight.tensor.shape, weight.tensor.device) == ((2, 3), "cpu")
    assert weight.tensor.requires_grad
    assert weight.assigned_at == line("self.W_query = ")
