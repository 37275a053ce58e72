"""How a framework opens a file of weights, by its suffix; truth is the framework's own loader."""

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft", reason="the extra `frameworks` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `frameworks` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra is not installed")

from loaders.test_diffusers_models import build as build_diffusers  # noqa: E402

LLAMA = "LlamaForCausalLM"
State = Mapping[str, torch.Tensor]
Report = Mapping[str, Any]


def build_llama():
    return build_model(LLAMA, PLAIN[LLAMA])


def save_adapter(folder: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(build_llama(), config).save_pretrained(folder)


def ask_peft(folder: Path) -> Report:
    model = peft.PeftModel.from_pretrained(build_llama(), folder)
    result = model.load_adapter(str(folder), "default")
    return {"missing_keys": result.missing_keys, "unexpected_keys": result.unexpected_keys}


def ask_from_pretrained(cls) -> Callable[[Path], Report]:
    return lambda folder: cls.from_pretrained(folder, output_loading_info=True)[1]


FRAMEWORKS: dict[
    str, tuple[Callable[[Path], None], Mapping[str, str], Callable[[Path], Report]]
] = {
    "transformers": (
        lambda folder: build_llama().save_pretrained(folder),
        {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"},
        ask_from_pretrained(transformers.LlamaForCausalLM),
    ),
    "diffusers": (
        lambda folder: build_diffusers("UNet2DModel").save_pretrained(folder),
        {s: f"diffusion_pytorch_model{s}" for s in (".safetensors", ".bin")},
        ask_from_pretrained(diffusers.UNet2DModel),
    ),
    "peft": (save_adapter, {s: f"adapter_model{s}" for s in (".safetensors", ".bin")}, ask_peft),
}
"""Framework -> what writes its folder, the names of its weights, and what loads it."""


def write_pickle(state: State, path: Path) -> None:
    path.write_bytes(pickle.dumps({k: t.numpy() for k, t in state.items()}))


FORMS: dict[str, Callable[[State, Path], object]] = {
    "flat": torch.save,
    "legacy": lambda s, path: torch.save(dict(s), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda state, path: save_file(dict(state), path, {"format": "pt"}),
    "pickle": write_pickle,
    "nested": lambda state, path: torch.save({"state_dict": state, "epoch": 1}, path),
    "with a number": lambda state, path: torch.save({**state, "epoch": 1}, path),
    "with a mapping": lambda state, path: torch.save({**state, "ema": {"a": torch.ones(2)}}, path),
    "with arguments": lambda s, path: torch.save({**s, "args": argparse.Namespace(lr=1)}, path),
    "with a scalar": lambda s, path: torch.save({**s, "loss": np.float64(1)}, path),
    "a module": lambda _, path: torch.save(build_llama(), path),
}
QUICK = {("transformers", form) for form in FORMS} | {("peft", "with a mapping")}
CASES = [
    pytest.param(name, form, suffix, marks=() if (name, form) in QUICK else pytest.mark.matrix)
    for name in FRAMEWORKS
    for suffix in (".bin", ".safetensors")
    for form in FORMS
    if suffix == ".bin" or form in {"flat", "legacy", "safetensors", "pickle"}
]


@pytest.mark.parametrize(("name", "form", "suffix"), CASES)
def test_a_file_is_judged_as_its_framework_opens_it(name, form, suffix, tmp_path, run_command):
    """A pickle named model.safetensors, or a pickled module, loaded with from_pretrained()."""
    write_folder, names, load = FRAMEWORKS[name]
    folder, base = tmp_path / "model", tmp_path / "base"
    write_folder(folder)
    build_llama().save_pretrained(base)
    saved = folder / names[".safetensors"]
    state = {key: tensor.clone() for key, tensor in load_file(saved).items()}
    saved.unlink()
    FORMS[form](state, folder / names[suffix])
    options = ("--base", str(base)) if name == "peft" else ()
    result = run_command("diff", str(folder), *options, "--no-config")
    gate = run_command("gate", str(folder), *options, "--no-config")
    try:
        report = load(folder)
    except Exception:  # noqa: BLE001 (each library raises its own)
        assert (result.code, gate.code) == (1, 1)
        assert result.out.startswith("does not load")
        return
    missing, unexpected = len(report["missing_keys"]), len(report["unexpected_keys"])
    is_whole = not (missing or unexpected)
    assert (result.code == 0, gate.code == 0) == (is_whole, is_whole)
    assert f"{missing} missing, {unexpected} unexpected" in result.out
    verify = run_command("verify", str(folder), *options, "--no-config")
    assert (verify.code == 0) == is_whole


def test_a_model_of_a_pipeline_is_opened_as_alone(tmp_path, run_command):
    scheduler = diffusers.DDPMScheduler()
    folder = tmp_path / "pipeline"
    diffusers.DDPMPipeline(build_diffusers("UNet2DModel"), scheduler).save_pretrained(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    torch.save(state, file)
    with pytest.raises(OSError, match="Unable to load weights"):
        diffusers.DDPMPipeline.from_pretrained(folder)
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 1
    assert "unet: it opens `diffusion_pytorch_model.safetensors` with safetensors" in result.out
