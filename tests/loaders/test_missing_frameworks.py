"""Commands on a framework's folder in a process that cannot import the framework."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

REFUSING_FINDER = """
import os, sys

class RefusingFinder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == os.environ["MISSING"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, RefusingFinder())
"""
CONFIGS = {
    "transformers": ("config.json", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}),
    "diffusers": ("config.json", {"_class_name": "UNet2DModel"}),
    "pipeline": ("model_index.json", {"_class_name": "DDPMPipeline",
                                      "unet": ["diffusers", "UNet2DModel"]}),
    "peft": ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "base"}),
    "timm": ("config.json", {"architecture": "resnet10t", "pretrained_cfg": {}}),
}  # fmt: skip
WEIGHTS = {
    "transformers": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
    "pipeline": "unet/diffusion_pytorch_model.safetensors",
    "peft": "adapter_model.safetensors",
    "timm": "model.safetensors",
}
HINTS = {"timm": "pip install timm torchvision"}
CASES = [
    ("transformers", "transformers"), ("diffusers", "diffusers"), ("peft", "peft"),
    ("timm", "timm"), ("pipeline", "diffusers"), ("pipeline", "transformers"),
    ("peft", "transformers"),
]  # fmt: skip
"""Kind of folder, and what is missing."""


@pytest.fixture
def make_folder(tmp_path):
    def make(kind: str) -> Path:
        folder = tmp_path / kind
        weights = folder / WEIGHTS[kind]
        weights.parent.mkdir(parents=True)
        name, config = CONFIGS[kind]
        (folder / name).write_text(json.dumps(config))
        save_file({"fc.weight": torch.ones(3, 4)}, weights, metadata={"format": "pt"})
        return folder

    return make


def hide(tmp_path: Path, package: str) -> dict[str, str]:
    """Return the environment of a process whose imports of `package` are refused."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(REFUSING_FINDER)
    return {
        "MISSING": package,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hidden"), str(Path.cwd())]),
    }


@pytest.mark.parametrize(("kind", "package"), CASES)
def test_one_line_says_what_to_install(kind, package, make_folder, tmp_path, ckptool):
    """Without timm, gate passed with "no module was given", and migrate wrote what it read."""
    folder, environment = make_folder(kind), hide(tmp_path, package)
    target = tmp_path / "out"
    for words in (["diff"], ["audit"], ["verify"], ["gate"], ["migrate", "-o", str(target)]):
        command, *options = words
        result = ckptool(command, str(folder), *options, "--no-config", **environment)
        assert result.code == 2, (command, result.out)
        (line,) = result.err.splitlines()
        assert package in line
        assert "not installed here" in line
        assert HINTS.get(kind, "pip install 'ckptool[frameworks]'") in line
    assert not target.exists()


@pytest.mark.parametrize(("kind", "package"), CASES)
def test_what_needs_no_module_is_the_same_without_it(kind, package, make_folder, tmp_path, ckptool):
    """`lock FOLDER` and `convert` describe the file, and never ask a framework."""
    folder, environment = make_folder(kind), hide(tmp_path, package)
    for command in ("inspect", "digest"):
        results = [ckptool(command, str(folder), **env) for env in ({}, environment)]
        assert results[0] == results[1]
        assert results[0].code == 0
    for words in (["lock", "-o"], ["convert", "-o"]):
        written = []
        for name, env in (("with.json", {}), ("without.json", environment)):
            target = tmp_path / name if words[0] == "lock" else tmp_path / f"{name}.pth"
            result = ckptool(words[0], str(folder), words[1], str(target), "--no-config", **env)
            assert result.code == 0, result.err
            files = sorted(p for p in [target, *target.rglob("*")] if p.is_file())
            written.append([file.read_bytes() for file in files])
        assert written[0]
        assert written[0] == written[1]


def test_a_framework_that_raises_on_import_is_said_to(make_folder, tmp_path, ckptool):
    folder = make_folder("transformers")
    broken = tmp_path / "broken" / "transformers"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('built for another torch')\n")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), str(Path.cwd())])}
    for command in ("diff", "audit", "verify", "gate", "migrate"):
        options = ("-o", str(tmp_path / "out")) if command == "migrate" else ()
        result = ckptool(command, str(folder), *options, "--no-config", **environment)
        assert result.code == 2, (command, result.out)
        assert "ImportError: built for another torch" in result.err
        assert "Traceback" not in result.err
