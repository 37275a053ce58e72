"""The lists that ckptool gives for timm, against timm's own strict load of the same folder.

timm wants torchvision, which there is beside another torch only: by hand, with both installed.
"""

import json
from pathlib import Path

import pytest
import torch
from loaders.changed_weights import add_one, drop_one
from safetensors.torch import save_file

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.formats import open_checkpoint
from ckptool.loaders.describe import load_with_framework
from ckptool.loaders.model_folder import find_model_folder
from ckptool.loaders.registry import get_loader

pytest.importorskip("torchvision", reason="timm needs torchvision")
timm = pytest.importorskip("timm", reason="timm is not installed")

ARCHITECTURES = ("resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050", "efficientnet_lite0",
                 "convnext_atto", "regnetx_002", "densenet121", "mixer_s32_224", "levit_128s",
                 "lcnet_035", "tf_efficientnetv2_b0", "deit_tiny_patch16_224")  # fmt: skip


def save(folder: Path, architecture: str, change) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": architecture, "num_classes": 10,
              "pretrained_cfg": {"tag": "own", "num_classes": 10}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ask_timm(folder: Path) -> tuple[set[str], set[str]]:
    """Return what timm's load of the folder, without strict, finds missing and unexpected."""
    results = []
    old_load = torch.nn.Module.load_state_dict

    def load(self, *args, **kwargs):
        results.append(old_load(self, *args, **{**kwargs, "strict": False}))
        return results[-1]

    torch.nn.Module.load_state_dict = load
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    finally:
        torch.nn.Module.load_state_dict = old_load
    return set(results[-1].missing_keys), set(results[-1].unexpected_keys)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lists_are_those_of_timm(architecture, tmp_path):
    for change in (lambda state: None, drop_one, add_one):
        folder = save(tmp_path / "model", architecture, change)
        model_folder = find_model_folder(folder)
        assert model_folder is not None
        assert (model_folder.loader, model_folder.class_name) == ("timm", architecture)
        module = get_loader("timm").build_model(folder, architecture)
        info = load_with_framework("timm", module, open_checkpoint(folder).states[0])
        assert isinstance(info, LoadingInfo), info
        assert not info.error
        truth = ask_timm(folder)
        assert (set(info.missing_keys), set(info.unexpected_keys)) == truth
        assert info.is_whole == (not any(truth))
