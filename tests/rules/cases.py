"""For each rule a case that fires and a near miss, made of real files and modules.

A case returns a report. Its expected set is exact: every rule runs over every case, so a false
alarm of another rule shows up here.
"""

import argparse
import collections
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modules_for_tests
import msgspec
import torch
from safetensors.torch import save_file
from torch import nn
from verification import models

from ckptool import api
from ckptool.reports.audit import AuditReport
from ckptool.reports.inspect import InspectReport


@dataclass(frozen=True)
class Case:
    name: str
    code: str
    fires: bool
    expected: frozenset[str]
    make: Callable[[Path], Any]


CASES: list[Case] = []


def fires(code: str, *others: str):
    """Register a case in which `code` fires, and `others` with it."""
    return _register(code, True, {code, *others})


def near(code: str, *others: str):
    """Register a near miss of `code`, in which only `others` fire."""
    return _register(code, False, set(others))


def _register(code: str, does: bool, expected: set[str]):
    def register(make):
        name = f"{code}-{'fires' if does else 'near'}-{make.__name__}"
        CASES.append(Case(name, code, does, frozenset(expected), make))
        return make

    return register


def audit(name: str, **kwargs) -> AuditReport:
    return api.audit(f"modules_for_tests:{name}", kwargs=kwargs)


def inspect(tmp: Path, content, **options) -> InspectReport:
    path = tmp / "model.pth"
    torch.save(content, path, **options)
    return api.inspect(path)


def diff(tmp: Path, content, module: str, at: str | None = None, **kwargs):
    path = tmp / "model.pth"
    torch.save(content, path)
    target = module if ":" in module else f"modules_for_tests:{module}"
    return api.diff(path, module=target, kwargs=kwargs, at=at)


def files(tmp: Path, old, new):
    torch.save(old, tmp / "old.pth")
    torch.save(new, tmp / "new.pth")
    return api.diff(tmp / "old.pth", tmp / "new.pth")


def renamed(state, old: str, new: str):
    return collections.OrderedDict((k.replace(old, new), v) for k, v in state.items())


# CK1xx: a module alone


@fires("CK101", "CK110", "CK111")
def plain_attribute(tmp):
    return audit("AttributeMask")


@near("CK101")
def registered_buffer(tmp):
    return audit("BufferMask")


@near("CK101", "CK114")  # torch itself refuses what it writes
def state_dict_override(tmp):
    return audit("Metric")


@fires("CK102", "CK103", "CK104", "CK110", "CK111")
def tensor_in_dict(tmp):
    return audit("ListLayers")


@fires("CK102", "CK110", "CK111")
def tensor_in_dataclass_and_deque(tmp):
    return audit("DataclassState")


@near("CK102")
def containers_of_torch(tmp):
    return audit("RegisteredLayers")


@fires("CK103", "CK102", "CK104", "CK110", "CK111")
def modules_in_list(tmp):
    return audit("ListLayers")


@near("CK103")
def modules_in_module_list(tmp):
    return audit("RegisteredLayers")


@fires("CK104", "CK102", "CK103", "CK110", "CK111")
def parameter_in_list(tmp):
    return audit("ListLayers")


@near("CK104")
def parameter_list(tmp):
    return audit("RegisteredLayers")


@fires("CK105")
def random_unsaved_buffer(tmp):
    return audit("RandomUnsavedBuffer")


@near("CK105", "CK106")
def constant_unsaved_buffer(tmp):
    return audit("UnsavedBufferMask")


@fires("CK106")
def unsaved_buffer(tmp):
    return audit("UnsavedBufferMask")


@near("CK106", "CK105")
def unsaved_buffer_that_is_random(tmp):
    return audit("RandomUnsavedBuffer")


@fires("CK108")
def numpy_mean(tmp):
    return audit("NumpyStatistics")


@near("CK108", "CK101", "CK110", "CK111")
def tensor_and_no_array(tmp):
    return audit("AttributeMask")


@fires("CK109")
def list_of_buffers(tmp):
    return audit("StaleAlias")


@near("CK109")
def flat_weights_of_an_lstm(tmp):
    return api.audit("torch.nn:LSTM", kwargs={"input_size": 2, "hidden_size": 2})


@fires("CK110", "CK101", "CK111")
def attribute_left_behind(tmp):
    return audit("AttributeMask")


@near("CK110", "CK106")
def unsaved_buffer_follows(tmp):
    return audit("UnsavedBufferMask")


@fires("CK111", "CK101", "CK110")
def attribute_keeps_its_dtype(tmp):
    return audit("AttributeMask")


@near("CK111", "CK101", "CK110")
def integers_are_not_cast(tmp):
    return audit("IntegerAttribute")


@fires("CK112")
def none_buffer(tmp):
    return audit("NoneBuffer")


@near("CK112")
def linear_without_bias(tmp):
    return api.audit("torch.nn:Linear", kwargs={"in_features": 2, "out_features": 2, "bias": False})


@near("CK112")
def loss_without_class_weights(tmp):
    return api.audit("torch.nn:CrossEntropyLoss")


# CK2xx: a file against a module


@fires("CK201")
def half_of_a_layer(tmp):
    state = modules_for_tests.Encoder().state_dict()
    del state["head.bias"]
    return diff(tmp, state, "Encoder")


@near("CK201")
def all_parameters(tmp):
    return diff(tmp, modules_for_tests.Encoder().state_dict(), "Encoder")


@fires("CK202")
def converter_dropped_statistics(tmp):
    norm = nn.BatchNorm1d(4)
    state = norm.state_dict()
    del state["running_mean"]
    return diff(tmp, state, "torch.nn:BatchNorm1d", num_features=4)


@near("CK202", "CK203")
def constructor_makes_it_again(tmp):
    state = modules_for_tests.BufferMask().state_dict()
    del state["mask"]
    return diff(tmp, state, "BufferMask")


@fires("CK202")
def zeros_wait_for_the_first_batch(tmp):
    state = {"cluster_size": torch.full((4,), 0.5), "embed_avg": torch.eye(4)}
    return diff(tmp, state, "modules.waiting_buffers:Codebook")


@fires("CK202")
def a_parent_writes_the_buffer_of_a_child(tmp):
    state = {"child.other": torch.arange(4.0) / 4}
    return diff(tmp, state, "modules.waiting_buffers:ParentCopies")


@near("CK202", "CK203")
def nothing_writes_a_value_with_structure(tmp):
    names = ("layers.0.shift", "layers.0.other", "layers.1.shift")
    state = {name: torch.arange(4.0) / 4 for name in names}
    return diff(tmp, state, "modules.waiting_buffers:ParentLoops")


@fires("CK203")
def attribute_became_buffer(tmp):
    return diff(tmp, modules_for_tests.AttributeMask().state_dict(), "BufferMask")


@near("CK203", "CK202")
def random_buffer_cannot_be_made_again(tmp):
    state = modules_for_tests.Mixed().state_dict()
    del state["projection"]
    return diff(tmp, state, "Mixed")


@fires("CK204")
def unknown_key(tmp):
    return diff(
        tmp, {**modules_for_tests.Encoder().state_dict(), "other.weight": torch.ones(7)}, "Encoder"
    )


@near("CK204", "CK205", "CK106")
def known_unsaved_key(tmp):
    return diff(tmp, modules_for_tests.BufferMask().state_dict(), "UnsavedBufferMask")


@fires("CK205", "CK106")
def persistence_flipped(tmp):
    return diff(tmp, modules_for_tests.BufferMask().state_dict(), "UnsavedBufferMask")


@near("CK205", "CK206", "CK106")
def persistence_flipped_and_value_changed(tmp):
    return diff(tmp, modules_for_tests.BufferMask().state_dict(), "DoubledUnsavedMask")


@fires("CK206", "CK106")
def another_base(tmp):
    return diff(tmp, modules_for_tests.Rope(500000.0).state_dict(), "Rope", persistent=False)


@near("CK206", "CK205", "CK106")
def the_same_base(tmp):
    return diff(tmp, modules_for_tests.Rope().state_dict(), "Rope", persistent=False)


@fires("CK207", "CK210")
def more_classes(tmp):
    return diff(
        tmp, nn.Linear(3, 5).state_dict(), "torch.nn:Linear", in_features=3, out_features=10
    )


@near("CK207", "CK215")
def vector_for_scalar(tmp):
    return diff(tmp, {"n": torch.tensor([5])}, "Counter")


@fires("CK208")
def float_into_integer(tmp):
    return diff(tmp, {"n": torch.tensor(2.87)}, "Counter")


@near("CK208")
def half_into_float(tmp):
    state = {k: v.half() for k, v in nn.Linear(2, 2).state_dict().items()}
    return diff(tmp, state, "torch.nn:Linear", in_features=2, out_features=2)


@fires("CK209", "CK210")
def stacked_wrappers(tmp):
    prefix = "_orig_mod.module._fsdp_wrapped_module."
    state = {prefix + k: v for k, v in modules_for_tests.Encoder().state_dict().items()}
    return diff(tmp, state, "Encoder")


@fires("CK209", "CK210")
def lightning_prefix(tmp):
    return diff(
        tmp,
        {f"model.{k}": v for k, v in modules_for_tests.Encoder().state_dict().items()},
        "Encoder",
    )


@near("CK209")
def real_names_like_wrappers(tmp):
    return diff(tmp, modules_for_tests.Tower().state_dict(), "Tower")


@fires("CK210", "CK204", "CK201")
def another_model(tmp):
    return diff(tmp, {"other.weight": torch.ones(7, 7)}, "Encoder")


@near("CK210", "CK201")
def most_of_the_model(tmp):
    state = modules_for_tests.Encoder().state_dict()
    del state["head.weight"]
    return diff(tmp, state, "Encoder")


@fires("CK211", "CK210")
def refactored_name(tmp):
    return diff(tmp, renamed(modules_for_tests.Encoder().state_dict(), "encoder", "enc"), "Encoder")


@near("CK211", "CK201", "CK204", "CK210")
def same_name_of_another_shape(tmp):
    state = renamed(modules_for_tests.Encoder().state_dict(), "encoder", "enc")
    state["enc.weight"], state["enc.bias"] = torch.ones(5, 5), torch.ones(5)
    return diff(tmp, state, "Encoder")


@fires("CK212", "CK201", "CK204", "CK210")
def outer_dict(tmp):
    content = {"epoch": 3, "state_dict": modules_for_tests.Encoder().state_dict()}
    return diff(tmp, content, "Encoder", at=".")


@near("CK212")
def right_place(tmp):
    content = {"epoch": 3, "state_dict": modules_for_tests.Encoder().state_dict()}
    return diff(tmp, content, "Encoder", at="state_dict")


@fires("CK214")
def class_weights(tmp):
    return diff(tmp, modules_for_tests.WithLoss().state_dict(), "WithLoss", weighted=False)


@near("CK214")
def same_loss(tmp):
    return diff(tmp, modules_for_tests.WithLoss().state_dict(), "WithLoss")


@fires("CK215")
def one_element(tmp):
    return diff(tmp, {"n": torch.tensor([5])}, "Counter")


@near("CK215")
def scalar(tmp):
    return diff(tmp, {"n": torch.tensor(5)}, "Counter")


@fires("CK216")
def versions_dropped(tmp):
    return diff(tmp, dict(modules_for_tests.Versioned().state_dict()), "Versioned")


@fires("CK216")
def counter_filled_in_silently(tmp):
    state = nn.BatchNorm1d(2).state_dict()
    del state["num_batches_tracked"]
    report = diff(tmp, dict(state), "torch.nn:BatchNorm1d", num_features=2)
    assert report.verdict == "loads strictly, by the module's own upgrade of 1 key"
    return report


@fires("CK216")
def observer_resets_eps(tmp):
    observer = torch.ao.quantization.MinMaxObserver(eps=1e-2)
    return diff(tmp, dict(observer.state_dict()), "torch.ao.quantization:MinMaxObserver")


@near("CK216")
def versions_kept(tmp):
    return diff(tmp, modules_for_tests.Versioned().state_dict(), "Versioned")


@near("CK216")
def no_class_has_a_second_version(tmp):
    return diff(tmp, dict(modules_for_tests.Encoder().state_dict()), "Encoder")


@fires("CK220")
def extra_state_dropped(tmp):
    state = {
        k: v for k, v in modules_for_tests.ExtraState().state_dict().items() if "extra" not in k
    }
    return diff(tmp, state, "ExtraState")


@near("CK220")
def extra_state_kept(tmp):
    return diff(tmp, modules_for_tests.ExtraState().state_dict(), "ExtraState")


# CK3xx and CK5xx: a file alone


@fires("CK301")
def namespace(tmp):
    return inspect(tmp, {"w": torch.ones(2), "args": argparse.Namespace(lr=1)})


@near("CK301")
def plain_types(tmp):
    return inspect(tmp, {"w": torch.ones(2), "args": {"lr": 1, "name": "os\nsystem"}})


@fires("CK314")
def a_file_of_torch_save_in_a_byte_string(tmp):
    teacher = io.BytesIO()
    torch.save({"w": torch.ones(2)}, teacher)
    return inspect(tmp, {"w": torch.ones(2), "teacher": teacher.getvalue()})


@near("CK314")
def bytes_that_are_no_archive(tmp):
    return inspect(tmp, {"w": torch.ones(2), "teacher": b"PK are my initials"})


@fires("CK326")
def protocol_four(tmp):
    return inspect(tmp, {"w": torch.ones(2)}, pickle_protocol=4)


@near("CK326")
def protocol_two(tmp):
    return inspect(tmp, {"w": torch.ones(2)}, pickle_protocol=2)


@fires("CK302", "CK301")
def pickled_linear(tmp):
    return inspect(tmp, nn.Linear(2, 2))


@near("CK302")
def state_of_linear(tmp):
    return inspect(tmp, nn.Linear(2, 2).state_dict())


class Gone(nn.Module):
    """Its home is moved before it is pickled, so that nobody can import it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


@fires("CK303", "CK302", "CK301")
def class_in_main(tmp):
    path = tmp / "model.pth"
    torch.save(modules_for_tests.Encoder(), path)
    content = path.read_bytes().replace(
        b"cmodules_for_tests\nEncoder\n", b"cmodules_for_testz\nEncoder\n"
    )
    path.write_bytes(_without_checksums(content))
    return api.inspect(path)


@near("CK303", "CK302", "CK301")
def class_is_here(tmp):
    return inspect(tmp, nn.Linear(2, 2))


@fires("CK304", "CK302", "CK301")
def attribute_of_a_newer_class(tmp):
    old = nn.GELU()
    del old.approximate
    content = nn.Sequential(nn.Linear(2, 2), old)
    return diff(tmp, content, "rules.cases:activated")


@near("CK304", "CK302", "CK301")
def attributes_of_today(tmp):
    return diff(tmp, activated(), "rules.cases:activated")


@near("CK304")
def a_scripted_module_contains_its_classes(tmp):
    torch.jit.trace(activated().eval(), torch.ones(1, 2)).save(tmp / "model.pt")
    return api.diff(tmp / "model.pt", module="rules.cases:activated")


@fires("CK304", "CK302", "CK301")
def an_attribute_of_the_root_class(tmp):
    old = nn.Linear(2, 2)
    del old.in_features
    return diff(tmp, old, "torch.nn:Linear", in_features=2, out_features=2)


def activated() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.GELU())


@fires("CK307")
def saved_on_a_gpu(tmp):
    path = tmp / "model.pth"
    torch.save({"w": torch.ones(2)}, path)
    tagged = path.read_bytes().replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00xpu")
    path.write_bytes(_without_checksums(tagged))
    return api.inspect(path)


@near("CK307")
def saved_on_the_cpu(tmp):
    return inspect(tmp, {"w": torch.ones(2)})


@fires("CK308")
def slice_of_a_large_tensor(tmp):
    return inspect(tmp, {"x": torch.zeros(250_000)[:10]})


@near("CK308")
def clone_of_a_slice(tmp):
    return inspect(tmp, {"x": torch.zeros(250_000)[:10].clone()})


@near("CK308")
def views_that_use_all_of_a_storage(tmp):
    whole = torch.zeros(10_000)
    return inspect(tmp, {"a": whole[:5_000], "b": whole[5_000:]})


@fires("CK310")
def no_format(tmp):
    save_file({"w": torch.ones(1)}, tmp / "m.safetensors")
    return api.inspect(tmp / "m.safetensors")


@near("CK310")
def format_pt(tmp):
    save_file({"w": torch.ones(1)}, tmp / "m.safetensors", metadata={"format": "pt"})
    return api.inspect(tmp / "m.safetensors")


@fires("CK312")
def transposed(tmp):
    return inspect(tmp, {"w": torch.randn(2, 3).t()})


@near("CK312")
def row_of_ones(tmp):
    return inspect(tmp, {"w": torch.randn(1, 3).t().contiguous()})


@fires("CK503")
def tied_embedding(tmp):
    embedding, head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
    head.weight = embedding.weight
    return inspect(tmp, nn.ModuleDict({"emb": embedding, "head": head}).state_dict())


@near("CK503")
def equal_and_apart(tmp):
    weight = torch.ones(4, 2)
    return inspect(tmp, {"emb": weight, "head": weight.clone()})


# CK8xx: two files


@fires("CK801")
def key_removed(tmp):
    state = modules_for_tests.Encoder().state_dict()
    return files(tmp, state, {k: v for k, v in state.items() if k != "head.bias"})


@near("CK801")
def nothing_removed(tmp):
    state = modules_for_tests.Encoder().state_dict()
    return files(tmp, state, copy.deepcopy(state))


@fires("CK802")
def key_added(tmp):
    state = modules_for_tests.Encoder().state_dict()
    return files(tmp, state, {**state, "mask": torch.ones(9)})


@near("CK802", "CK801", "CK211")
def key_renamed(tmp):
    state = modules_for_tests.Encoder().state_dict()
    return files(tmp, state, renamed(state, "encoder", "enc"))


@fires("CK804")
def dtype_changed(tmp):
    state = modules_for_tests.Encoder().state_dict()
    return files(tmp, state, {k: v.bfloat16() for k, v in state.items()})


@near("CK804")
def value_changed(tmp):
    state = modules_for_tests.Encoder().state_dict()
    return files(tmp, state, {k: v + 1 for k, v in state.items()})


def verify(tmp: Path, name: str):
    path = tmp / "model.pth"
    torch.save(getattr(models, name)().state_dict(), path)
    inputs = ("float32[2,4]",)
    return api.verify(path, module=f"verification.models:{name}", device="simulated", inputs=inputs)


def exercise(name: str) -> AuditReport:
    return api.audit(f"verification.models:{name}", inputs=("float32[2,4]",))


@fires("CK107", "CK101", "CK110", "CK111")
def flag_and_counter(_tmp):
    return exercise("Counting")


@near("CK107")
def nothing_in_python_changes(_tmp):
    return exercise("Plain")


@fires("CK113", "CK701")
def drawn_anew(tmp):
    return verify(tmp, "RandomTable")


@near("CK113", "CK701")
def unsaved_and_unused(tmp):
    return verify(tmp, "Tables")


@fires("CK701", "CK110")
def left_on_meta(tmp):
    return verify(tmp, "WithoutScale")


@near("CK701")
def everything_is_in_the_file(tmp):
    return verify(tmp, "Plain")


@fires("CK702")
def tied_weights(tmp):
    return verify(tmp, "Tied")


@near("CK702")
def nothing_tied(tmp):
    return verify(tmp, "Plain")


def _without(found, code: str):
    """Leave out the findings of `code`, which the case is not about."""
    return msgspec.structs.replace(
        found, findings=tuple(f for f in found.findings if f.code != code)
    )


def _without_checksums(content: bytes) -> bytes:
    """Set the zip checksums of a doctored file to 0, "not computed", as torch can be told to."""
    import struct

    edited = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16), (b"PK\x07\x08", 4)):
        start = edited.find(signature)
        while start >= 0:
            struct.pack_into("<I", edited, start + offset, 0)
            start = edited.find(signature, start + 4)
    return bytes(edited)
