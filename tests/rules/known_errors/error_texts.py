"""Texts of errors: real ones, raised here by the libraries, and those that need machines."""

import io
import pickle
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm


def raised_text(function: Callable[[], object]) -> str:
    """Return the traceback that a call raises, or the text of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function()
        except BaseException:  # noqa: BLE001 (whatever the library raises: that of DCP is no Exception)
            return traceback.format_exc()
    return "\n".join(f"train.py:3: UserWarning: {w.message}" for w in caught)


def load_text(module: nn.Module, state: dict, *, prefix: str = "") -> str:
    state = {prefix + key: value for key, value in state.items()}
    return raised_text(lambda: module.load_state_dict(state))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


class Model(nn.Module):
    def __init__(self, *, vocabulary=10, classes=3, encoder="encoder", layers=2, width=8):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.add_module(encoder, nn.ModuleList(nn.Linear(width, width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)


class Buffered(nn.Module):
    def __init__(self, *names: str):
        super().__init__()
        self.proj = nn.Linear(2, 2)
        for name in names:
            self.register_buffer(name, torch.arange(3))


def old_names(state: dict) -> dict:
    return {
        key.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): value
        for key, value in state.items()
    }


def lora(module: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(module, peft.LoraConfig(target_modules=["classifier"], r=2))


def wrapped(prefix: str) -> nn.Module:
    outer = nn.Module()
    outer.add_module(prefix, net())
    return outer


def optimizer_text(*, groups: bool) -> str:
    saved = torch.optim.Adam(Model().parameters())
    module = Model(layers=3)
    parameters = list(module.parameters())
    two = [{"params": parameters[:2]}, {"params": parameters[2:]}]
    new = torch.optim.Adam(two if groups else parameters)
    return raised_text(lambda: new.load_state_dict(saved.state_dict()))


def read_bytes(content: bytes, **options: object) -> str:
    return raised_text(lambda: torch.load(io.BytesIO(content), **options))


def saved_bytes(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def pickled_in_lost_module(*, keep_module: bool) -> str:
    """Load a pickle of a class whose module, or whose name in it, is no longer there."""
    home = ModuleType("oldproject.models")
    exec("class Net: pass", home.__dict__)
    home.Net.__module__ = "oldproject.models"
    sys.modules["oldproject"], sys.modules["oldproject.models"] = ModuleType("oldproject"), home
    try:
        content = pickle.dumps(home.Net())
        del home.Net
        if not keep_module:
            del sys.modules["oldproject.models"], sys.modules["oldproject"]
        return raised_text(lambda: pickle.load(io.BytesIO(content)))
    finally:
        sys.modules.pop("oldproject.models", None)
        sys.modules.pop("oldproject", None)


def safetensors_text(tmp_path, content: bytes) -> str:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return raised_text(lambda: load_file(path))


def safetensors_bytes(tmp_path) -> bytes:
    path = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(20)}, path)
    return path.read_bytes()


def numpy_scalar() -> object:
    import numpy as np

    return {"best": np.float64(0.5)}


def namespace() -> object:
    import argparse

    return {"args": argparse.Namespace(lr=0.1)}


def plain_state(module: nn.Module) -> dict:
    return dict(module.state_dict())


def bf16_input() -> object:
    return nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16))


def meta_state(module: nn.Module) -> dict:
    return {key: value.to("meta") for key, value in module.state_dict().items()}


def save_old(folder) -> str:
    path = str(folder / "old.pth")
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def read_by_pickle(path: str) -> None:
    """Read the pickles of a file that torch.save wrote, one after the other."""
    with Path(path).open("rb") as file:
        while True:
            pickle.load(file)


def tagged_bytes(tag: str) -> bytes:
    """Return a file whose tensors say that they were saved on a device that is not here."""
    if tag.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    original = torch.serialization.location_tag
    torch.serialization.location_tag = lambda _: tag
    try:
        return saved_bytes(net().state_dict())
    finally:
        torch.serialization.location_tag = original


def load_dcp(folder, state: dict) -> str:
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"a": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
    return raised_text(lambda: checkpoint.load(state, checkpoint_id=folder, no_dist=True))


def load_adapter(folder) -> str:
    peft = pytest.importorskip("peft")
    return raised_text(lambda: peft.PeftModel.from_pretrained(nn.Linear(2, 2), str(folder)))


def place_meta_tensor() -> str:
    utils = pytest.importorskip("accelerate.utils")
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    return raised_text(lambda: utils.set_module_tensor_to_device(module, "weight", "cpu"))


def resume_trainer(folder, *, resume) -> str:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
    config = transformers.BertConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)
    arguments = transformers.TrainingArguments(str(folder), report_to=[], use_cpu=True)
    trainer = transformers.Trainer(transformers.BertModel(config), arguments, train_dataset=[1])
    return raised_text(lambda: trainer.train(resume_from_checkpoint=resume))


def load_path(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return raised_text(lambda: torch.load(path))


CUT_ZIP = {"zip-cut"} if sys.platform == "linux" else {"zip-truncated"}
"""A file opened by its path: torch's reader of it raises the error of the system."""

REAL = {
    # name of the case: (text, kinds of the explanations, words of a next step)
    "on meta": (lambda _: load_text(nn.Linear(2, 2), meta_state(nn.Linear(2, 2))),
                {"tensors-on-meta"}, 'map_location="cpu"'),
    "state_dict for a module": (lambda _: raised_text(
        lambda: torch.load(io.BytesIO(saved_bytes(net().state_dict()))).eval()),
        {"state-dict-for-module"}, "model.load_state_dict(torch.load("),
    "state_dict is called": (lambda _: raised_text(
        lambda: torch.load(io.BytesIO(saved_bytes(net().state_dict())))(torch.ones(1, 4))),
        {"state-dict-for-module"}, "ckptool inspect"),
    "another place": (lambda _: raised_text(
        lambda: net().load_state_dict(torch.load(io.BytesIO(saved_bytes({"model": {}})))["net"])),
        {"state-at-another-place"}, "ckptool inspect"),
    "plain pickle": (lambda _: read_bytes(pickle.dumps({"a": 1}), weights_only=False),
                     {"plain-pickle"}, "ckptool inspect"),
    "read by pickle": (lambda path: raised_text(lambda: read_by_pickle(save_old(path))),
                       {"torch-file-read-by-pickle"}, "torch.load("),
    "old format with mmap": (lambda path: raised_text(
        lambda: torch.load(save_old(path), mmap=True)), {"mmap-of-old-format"}, "ckptool convert"),
    "no such device": (lambda _: read_bytes(tagged_bytes("fpga")), {"unknown-device-tag"},
                       'map_location="cpu"'),
    "no GPU": (lambda _: read_bytes(tagged_bytes("cuda:0")), {"saved-on-cuda"},
               'map_location="cpu"'),
    "disk full": (lambda _: raised_text(lambda: torch.save(torch.ones(1 << 20), "/dev/full")),
                  {"save-ended-early"}, "free space"),
    "dcp": (lambda path: load_dcp(path, {"b": torch.ones(2)}), {"dcp-missing-key"},
            "ckptool diff CHECKPOINT_FOLDER"),
    "dcp size": (lambda path: load_dcp(path, {"a": torch.ones(3)}), {"dcp-size"}, "ckptool"),
    "incompatible keys": (lambda _: str(nn.Linear(2, 2).load_state_dict(
        {f"module.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}, strict=False)),
        {"wrapped-file"}, "removeprefix"),
    "adapter folder": (load_adapter, {"adapter-config-missing"}, "ckptool inspect"),
    "accelerate": (lambda _: place_meta_tensor(), {"accelerate-meta-tensor"}, "ckptool diff"),
    "trainer, empty folder": (lambda path: resume_trainer(path, resume=True),
                              {"trainer-no-checkpoint"}, "ls -l"),
    "trainer, no weights": (lambda path: resume_trainer(path, resume=str(path)),
                            {"trainer-unfit-checkpoint"}, "ckptool inspect"),
    "ddp": (lambda _: load_text(net(), plain_state(net()), prefix="module."),
            {"wrapped-file"}, 'removeprefix("module.")'),
    "compiled": (lambda _: load_text(net(), plain_state(net()), prefix="_orig_mod."),
                 {"wrapped-file"}, 'removeprefix("_orig_mod.")'),
    "compiled ddp": (lambda _: load_text(net(), plain_state(net()), prefix="module._orig_mod."),
                     {"wrapped-file"}, "_orig_mod"),
    "into ddp": (lambda _: load_text(wrapped("module"), plain_state(net())),
                 {"wrapped-module"}, "model.module.load_state_dict"),
    "lightning": (lambda _: load_text(net(), plain_state(net()), prefix="model."),
                  {"prefix-in-file"}, 'removeprefix("model.")'),
    "part": (lambda _: load_text(wrapped("backbone"), plain_state(net())),
             {"prefix-in-module"}, "model.backbone.load_state_dict"),
    "training checkpoint": (
        lambda _: raised_text(lambda: net().load_state_dict(
            {"epoch": 1, "model_state_dict": net().state_dict(), "optimizer": {}})),
        {"whole-checkpoint"}, "--at model_state_dict"),
    "renamed": (lambda _: load_text(Model(), plain_state(Model(encoder="layers"))),
                {"renamed-subtrees"}, "--rename 'layers.*=encoder.*'"),
    "gamma beta": (lambda _: load_text(Model(), old_names(plain_state(Model()))),
                   {"gamma-beta"}, ".gamma"),
    "weight norm, new in the file": (
        lambda _: load_text(old_weight_norm(nn.Linear(2, 2)),
                            plain_state(weight_norm(nn.Linear(2, 2)))),
        {"old-weight-norm"}, "ckptool migrate"),
    "weight norm, plain file": (
        lambda _: load_text(nn.Sequential(weight_norm(nn.Linear(2, 2))),
                            plain_state(nn.Sequential(nn.Linear(2, 2)))),
        {"old-weight-norm"}, "ckptool migrate"),
    "weight norm, plain module": (
        lambda _: load_text(nn.Sequential(nn.Linear(2, 2)),
                            plain_state(nn.Sequential(weight_norm(nn.Linear(2, 2))))),
        {"old-weight-norm"}, "ckptool migrate"),
    "position_ids": (lambda _: load_text(Buffered(), plain_state(Buffered("position_ids"))),
                     {"old-buffers"}, "position_ids"),
    "new buffer": (lambda _: load_text(Buffered("mask"), plain_state(Buffered())),
                   {"new-buffers"}, "ckptool migrate"),
    "no statistics": (
        lambda _: load_text(net(), {k: v for k, v in net().state_dict().items()
                                    if "running" not in k}),
        {"running-statistics"}, "ckptool diff"),
    "no counters": (
        lambda _: raised_text(lambda: net().load_state_dict(OrderedDictWithVersions(
            {k: v for k, v in net().state_dict().items() if "num_batches" not in k}))),
        {"batch-counters"}, "strict=False"),
    "lora file": (lambda _: load_text(Model(), plain_state(lora(Model()))),
                  {"adapter-file"}, "--merge-adapter"),
    "lora module": (lambda _: load_text(lora(Model()), plain_state(Model())),
                    {"adapter-module", "prefix-in-module"}, "get_peft_model"),
    "more layers in the file": (lambda _: load_text(Model(), plain_state(Model(layers=4))),
                                {"extra-layers"}, "ckptool diff"),
    "more layers in the module": (lambda _: load_text(Model(layers=4), plain_state(Model())),
                                  {"extra-layers"}, "ckptool diff"),
    "no head": (
        lambda _: load_text(Model(), {k: v for k, v in Model().state_dict().items()
                                      if "classifier" not in k}),
        {"other-head"}, "strict=False"),
    "vocabulary": (lambda _: load_text(Model(), plain_state(Model(vocabulary=12))),
                   {"vocabulary-size"}, "resize_token_embeddings(12)"),
    "classes": (lambda _: load_text(Model(), plain_state(Model(classes=7))),
                {"number-of-classes"}, "7 classes"),
    "transposed": (
        lambda _: load_text(nn.Linear(2, 3), {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}),
        {"transposed"}, "ckptool migrate"),
    "1x1 convolution": (
        lambda _: load_text(nn.Linear(2, 3),
                            {"weight": torch.zeros(3, 2, 1, 1), "bias": torch.zeros(3)}),
        {"reshaped"}, "ckptool migrate"),
    "empty zero-3": (
        lambda _: load_text(nn.Linear(2, 3), {"weight": torch.zeros(0), "bias": torch.zeros(3)}),
        {"empty-shard"}, "zero_to_fp32.py"),
    "grey images": (
        lambda _: load_text(nn.Conv2d(1, 8, 3, bias=False), {"weight": torch.zeros(8, 3, 3, 3)}),
        {"input-channels"}, "ckptool diff"),
    "a method": (lambda _: raised_text(lambda: net().load_state_dict(net().state_dict)),
                 {"not-a-mapping"}, "state_dict()"),
    "arrays": (
        lambda _: load_text(nn.Linear(1, 1, bias=False),
                            {"weight": torch.zeros(1, 1).numpy()}),
        {"not-a-tensor"}, "ckptool convert"),
    "meta module": (
        lambda _: raised_text(lambda: nn.Linear(2, 2, device="meta").load_state_dict(
            nn.Linear(2, 2).state_dict())),
        {"meta-parameter-not-loaded"}, "assign=True"),
    "meta copy": (lambda _: raised_text(lambda: nn.Linear(2, 2, device="meta").to("cpu")),
                  {"meta-tensor"}, "assign=True"),
    "namespace": (lambda _: read_bytes(saved_bytes(namespace())),
                  {"unsupported-global"}, "add_safe_globals([argparse.Namespace])"),
    "numpy scalar": (lambda _: read_bytes(saved_bytes(numpy_scalar())),
                     {"unsupported-global"}, "numpy.dtype"),
    "pickled module": (lambda _: read_bytes(saved_bytes(nn.Linear(1, 1))),
                       {"unsupported-global"}, "ckptool convert"),
    "lfs pointer": (
        lambda _: read_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        {"git-lfs-pointer"}, "git lfs pull"),
    "lfs pointer, unsafe": (
        lambda _: read_bytes(b"version https://git-lfs.github.com/spec/v1\n", weights_only=False),
        {"git-lfs-pointer"}, "git lfs pull"),
    "html page": (lambda _: read_bytes(b"<!DOCTYPE html><html>", weights_only=False),
                  {"html-page"}, "ckptool inspect"),
    "empty file": (lambda _: read_bytes(b"", weights_only=False),
                   {"pickle-truncated"}, "ckptool inspect"),
    "empty file, weights only": (lambda _: read_bytes(b""), {"pickle-empty"}, "ckptool inspect"),
    "cut file": (lambda p: load_path(
        p / "cut.pth", saved_bytes({"w": torch.zeros(25_000)})[:20_000]),
                 CUT_ZIP, "ckptool inspect"),
    "folder": (lambda p: raised_text(lambda: torch.load(p)), {"folder-for-file"}, "ckptool.load("),
    "optimizer for a module": (
        lambda _: raised_text(lambda: net().load_state_dict(
            torch.optim.AdamW(net().parameters()).state_dict())),
        {"optimizer-state"}, "optimizer.load_state_dict(state_dict)"),
    "cut zip": (lambda _: read_bytes(saved_bytes(net().state_dict())[:1500]),
                {"zip-truncated"}, "ckptool inspect"),
    "lost module": (lambda _: pickled_in_lost_module(keep_module=False),
                    {"lost-module"}, "ckptool convert"),
    "lost class": (lambda _: pickled_in_lost_module(keep_module=True),
                   {"lost-class"}, "ckptool convert"),
    "safetensors, html": (lambda p: safetensors_text(p, b"<!DOCTYPE html>" * 9),
                          {"safetensors-not-one"}, "ckptool inspect"),
    "safetensors, empty": (lambda p: safetensors_text(p, b""),
                           {"safetensors-not-one"}, "ckptool inspect"),
    "safetensors, cut": (lambda p: safetensors_text(p, safetensors_bytes(p)[:-8]),
                         {"safetensors-incomplete"}, "ckptool inspect"),
    "safetensors, shared": (
        lambda p: raised_text(lambda: save_file(dict.fromkeys("ab", torch.zeros(2)), p / "x")),
        {"safetensors-shared"}, "save_model"),
    "safetensors, view": (
        lambda p: raised_text(lambda: save_file({"a": torch.zeros(2, 3).T}, p / "x")),
        {"safetensors-not-contiguous"}, "contiguous()"),
    "safetensors load_model": (
        lambda p: (save_file(plain_state(wrapped("module")), p / "x"),
                   raised_text(lambda: load_model(net(), p / "x")))[1],
        {"wrapped-file"}, "removeprefix"),
    "optimizer": (lambda _: optimizer_text(groups=False),
                  {"optimizer-group-size"}, "ckptool inspect"),
    "optimizer groups": (lambda _: optimizer_text(groups=True),
                         {"optimizer-group-count"}, "ckptool inspect"),
    "input dtype": (lambda _: raised_text(bf16_input), {"input-on-other-device"}, "x.to("),
    "no file": (lambda _: raised_text(lambda: torch.load("runs/last.pth")),
                {"gone-file"}, "ls -l runs/last.pth"),
}  # fmt: skip
"""Errors that the installed libraries raise."""


class OrderedDictWithVersions(OrderedDict):
    """A state_dict that says that BatchNorm was of version 2: torch then adds no counters."""

    @property
    def _metadata(self) -> dict:
        return {"1": {"version": 2}}

    def copy(self) -> "OrderedDictWithVersions":
        return OrderedDictWithVersions(self)


QUOTED = {
    "two devices": (
        ("RuntimeError: Expected all tensors to be on the same device, but found at least two"
        " devices, cuda:0 and cpu!"),
        {"tensors-on-two-devices"}, "ckptool audit"),
    "two devices, argument": (
        ("RuntimeError: Expected all tensors to be on the same device, but got mask is on cpu,"
        " different from other tensors on cuda:0 (when checking argument in method"
        " wrapper_CUDA_masked_fill__Scalar)"),
        {"tensors-on-two-devices"}, "--device simulated"),
    "no GPU": (
        ("RuntimeError: Attempting to deserialize object on a CUDA device but"
        " torch.cuda.is_available() is False. If you are running on a CPU-only machine, please use"
        " torch.load with map_location=torch.device('cpu') to map your storages to the CPU."),
        {"saved-on-cuda"}, 'map_location="cpu"'),
    "fewer GPUs": (
        ("RuntimeError: Attempting to deserialize object on CUDA device 3 but"
        " torch.cuda.device_count() is 1. Please use torch.load with map_location to map your"
        " storages to an existing device."),
        {"saved-on-other-cuda"}, 'map_location="cpu"'),
    "newly initialised": (
        ("Some weights of BertForSequenceClassification were not initialized from the model"
        " checkpoint at ./bert-local and are newly initialized: ['classifier.bias',"
        " 'classifier.weight']\nYou should probably TRAIN this model on a down-stream task to be"
        " able to use it for predictions and inference."),
        {"transformers-newly-initialized"}, "ckptool diff"),
    "not used": (
        ("Some weights of the model checkpoint at ./bert-local were not used when initializing"
        " BertModel: ['cls.predictions.bias']"),
        {"transformers-not-used"}, "ckptool diff"),
    "dcp": (
        "RuntimeError: Missing key in checkpoint state_dict: model.layers.0.weight.",
        {"dcp-missing-key"}, "ckptool diff CHECKPOINT_FOLDER"),
    "dtensor": (
        ("RuntimeError: aten.copy_.default: got mixed torch.Tensor and DTensor, need to convert all"
        " torch.Tensor to DTensor before calling distributed operators!"),
        {"mixed-dtensor"}, "set_model_state_dict"),
    "flat parameters": (
        ('RuntimeError: Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict:'
        ' "fc.weight". \n\tUnexpected key(s) in state_dict: "_flat_param". '),
        {"fsdp-flat-parameter"}, "full_state_dict=True"),
    "deepspeed": (
        ("deepspeed.runtime.zero.utils.ZeRORuntimeException: The checkpoint being loaded used a DP"
        " world size of 8 but the current world size is 4. Automatic adjustment of ZeRO's optimizer"
        " state partitioning with a new world size is not currently supported."),
        {"deepspeed-world-size"}, "zero_to_fp32.py"),
    "adapter folder": (
        "ValueError: Can't find 'adapter_config.json' at './out/last'",
        {"adapter-config-missing"}, "ckptool inspect ./out/last"),
    "accelerate": (
        "ValueError: lm_head.weight is on the meta device, we need a `value` to put in on 0.",
        {"accelerate-meta-tensor"}, "ckptool diff"),
    "incompatible keys": (
        ("_IncompatibleKeys(missing_keys=['fc.weight', 'fc.bias'],"
        " unexpected_keys=['module.fc.weight', 'module.fc.bias'])"),
        {"wrapped-file"}, "removeprefix"),
    "bitsandbytes": (
        ("RuntimeError: Error(s) in loading state_dict for Net:\n\tsize mismatch for q.weight:"
        " copying a param with shape torch.Size([8192, 1]) from checkpoint, the shape in current"
        " model is torch.Size([128, 128])."),
        {"packed-4bit"}, "ckptool inspect"),
    "full disk": (
        ("RuntimeError: [enforce fail at inline_container.cc:603] . PytorchStreamWriter failed"
        " writing file data/4: file write failed"),
        {"save-failed"}, "ckptool inspect"),
}  # fmt: skip
"""Errors in the words of their libraries, which the tests cannot raise.

Two GPUs or a GPU, a mesh of processes: "two devices", "fewer GPUs", "dtensor", "flat parameters".
Not installed: "deepspeed", "bitsandbytes". In the words of versions before those that are
installed: "newly initialised", "not used" (transformers 4), "full disk" (torch before 2.8). The
others are here as a short text, and raised in `REAL` as well.
"""

NEAR_MISSES = {
    "import of a package": 'Traceback (most recent call last):\n  File "train.py", line 1, in'
    " <module>\n    import timm\nModuleNotFoundError: No module named 'timm'",
    "worker process": "Traceback (most recent call last):\n  File"
    ' "/usr/lib/python3.11/multiprocessing/spawn.py", line 122, in spawn_main\n    exitcode ='
    " _main(fd, parent_sentinel)\nAttributeError: Can't get attribute 'collate' on <module"
    " '__main__' (built-in)>",
    "attribute": "AttributeError: 'Net' object has no attribute 'load_state_dict'",
    "talk of keys": "we look for Missing key(s) in state_dict in the logs and count them",
    "documentation": "If you see `Error(s) in loading state_dict for`, read the guide.",
    "matched": "<All keys matched successfully>",
    "nothing missing": "_IncompatibleKeys(missing_keys=[], unexpected_keys=[])",
    "missing key of a dict": "KeyError: 'state_dict'",
    "missing argument": "TypeError: __init__() missing 1 required positional argument: 'dim'",
    "size of a matrix": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x4 and 3x2)",
    "size mismatch of a loss": "ValueError: size mismatch for target: got 3, expected 4",
    "out of memory": "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    " in loss.backward()",
    "image": "FileNotFoundError: [Errno 2] No such file or directory: 'data/cat.png'",
    "eof of input": 'Traceback (most recent call last):\n  File "ask.py", line 1, in <module>\n'
    "    input()\nEOFError: EOF when reading a line",
    "eof of a socket": 'Traceback (most recent call last):\n  File "queue.py", line 1, in'
    " recv\nEOFError: Ran out of input",
    "json": "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    "state_dict of a dict": "KeyError: 'model'",
    "eval of a dict": "AttributeError: 'dict' object has no attribute 'eval'",
    "path of a cache": "NotImplementedError: cannot instantiate 'PosixPath' on your system",
    "import of numpy": "ModuleNotFoundError: No module named 'numpy._core'",
    "position": "AssertionError: unexpected pos 3 vs 4 in the parser",
    "port": "RuntimeError: The server socket has failed to listen on any local network address.",
    "watchdog": "[rank0]:[E ProcessGroupNCCL.cpp:616] Watchdog caught collective operation timeout",
    "other dtype": "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and Half",
    "device of a tensor": "x is on the same device as y, all tensors are expected there",
    "nan": "ValueError: loss is nan at step 300",
    "progress": "Epoch 3: 100%|#####| 10/10 [00:01<00:00, 8.2it/s, loss=0.31]",
    "nccl": "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970",
    "load of yaml": "yaml.scanner.ScannerError: mapping values are not allowed here",
    "empty": "",
}
"""Texts that look alike, or come along with such errors, and have another cause."""
