"""Tensors and headers about which readers disagree: we read what torch reads, or one refuses.

Every file here is harmless: it names only what torch.load(weights_only=True) allows, and torch
itself is asked about each.
"""

import pytest
import torch
from containers import safetensors_bytes
from files import content, same_bits
from hostile.pickles import (
    FALSE,
    HOOKS,
    NONE,
    TRUE,
    archive,
    group,
    mapping,
    number,
    pickled,
    rebuilt,
    storage,
    tensor,
)
from safetensors import safe_open

from ckptool.errors import CkptoolError
from ckptool.formats import open_checkpoint


def torch_reads(path) -> dict | None:
    """Return what torch.load gives, None if it refuses."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 (whatever it raises, it is a refusal)
        return None


def we_read(path) -> dict | None:
    try:
        checkpoint = open_checkpoint(path)
    except CkptoolError:
        return None
    if checkpoint.damage or checkpoint.load_refusal:
        return None
    return {key: t for state in checkpoint.states for key, t in state.tensors.items()}


def assert_same_or_refused(path, *, refused: bool) -> None:
    ours, theirs = we_read(path), torch_reads(path)
    if refused:
        assert ours is None
    elif ours is not None and theirs is not None:
        assert set(ours) == set(theirs)
        for key, described in ours.items():
            assert same_bits(content(described), theirs[key])
            assert described.requires_grad == theirs[key].requires_grad


VIEW = (storage(), number(0), group(number(4)), group(number(1)))
PARAMETER = rebuilt("_rebuild_parameter", tensor(), TRUE, HOOKS)
TENSORS = {
    "v2 of 4 arguments": rebuilt("_rebuild_tensor_v2", *VIEW),
    "v2 of 5 arguments": rebuilt("_rebuild_tensor_v2", *VIEW, FALSE),
    "v2 of 8 arguments": rebuilt("_rebuild_tensor_v2", *VIEW, FALSE, HOOKS, NONE, NONE),
    "v1 of 6 arguments": rebuilt("_rebuild_tensor", *VIEW, FALSE, HOOKS),
    "v3 of 6 arguments": rebuilt("_rebuild_tensor_v3", *VIEW, FALSE, HOOKS),
    "a parameter of 2 arguments": rebuilt("_rebuild_parameter", tensor(), TRUE),
    "a parameter of 4 arguments": rebuilt("_rebuild_parameter", tensor(), TRUE, HOOKS, b"}"),
    "a parameter with state of 3": rebuilt("_rebuild_parameter_with_state", tensor(), TRUE, HOOKS),
    "a gradient of integers": tensor(grad=TRUE, kind="IntStorage"),
    "a gradient of bools": tensor(grad=TRUE, kind="BoolStorage"),
    "a parameter of integers": rebuilt(
        "_rebuild_parameter", tensor(kind="IntStorage"), TRUE, HOOKS
    ),
    "a gradient of 1": tensor(grad=b"K\x01"),
    "a gradient of None": tensor(grad=NONE),
    "a parameter's gradient of 1": rebuilt("_rebuild_parameter", tensor(), b"K\x01", HOOKS),
    "location nowhere": tensor(location="nowhere"),
    "location cpu:0": tensor(location="cpu:0"),
    "location cudax": tensor(location="cudax"),
    "location meta:1": tensor(location="meta:1"),
    "location CPU": tensor(location="CPU"),
    "location cuda:": tensor(location="cuda:"),
    "an offset of True": rebuilt("_rebuild_tensor_v2", storage(), TRUE, *VIEW[2:], FALSE, HOOKS),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_torch_refuses_is_refused(folder, kind):
    path = archive(folder / "x.pth", pickled(mapping(w=TENSORS[kind])))
    if kind != "an offset of True":
        assert torch_reads(path) is None
    assert_same_or_refused(path, refused=True)


@pytest.mark.parametrize(
    "made", [tensor(), tensor(grad=TRUE), tensor(kind="IntStorage"), PARAMETER, tensor(b"}")]
)
def test_a_tensor_that_torch_reads_is_read(folder, made):
    path = archive(folder / "x.pth", pickled(mapping(w=made)), bytes(range(16)))
    assert torch_reads(path) is not None
    assert we_read(path) is not None
    assert_same_or_refused(path, refused=False)


@pytest.mark.parametrize(
    "header",
    [
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[-0,16]}}',
        '{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}',
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1.6e1]}}',
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"shape":[2]}}',
        '{"w":{"dtype":"f32","shape":[4],"data_offsets":[0,16]}}',
        '{"w":{"dtype":"F32","shape":[04],"data_offsets":[0,16]}}',
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},}',
    ],
)
def test_a_header_that_safetensors_refuses_is_refused(folder, header):
    path = folder / "x.safetensors"
    path.write_bytes(safetensors_bytes(header))
    with pytest.raises(CkptoolError):
        open_checkpoint(path)
    if header.count("shape") == 1:
        with pytest.raises(Exception, match=r"safetensors|Safetensor|header|deserializ"):
            safe_open(path, "pt")
