"""A file without a configuration is recognised by its keys as diffusers recognises it."""

import pytest
import torch

import ckptool
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.loaders.single_files import find_single_file_layout

pytest.importorskip("diffusers")

from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import infer_diffusers_model_type


def make_controlnet() -> dict[str, torch.Tensor]:
    model = ControlNetModel(
        block_out_channels=(8, 8), cross_attention_dim=8, norm_num_groups=4, layers_per_block=1,
        attention_head_dim=4, conditioning_embedding_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    )  # fmt: skip
    return model.state_dict()


ORIGINAL = {
    "control_model.time_embed.0.weight": torch.ones(4, 4),
    "control_model.input_hint_block.0.weight": torch.ones(4, 3, 3, 3),
}
FILES = {
    "diffusers": (make_controlnet, True),
    "original": (lambda: ORIGINAL, True),
    "original, nested": (lambda: {"state_dict": ORIGINAL}, True),
    "elsewhere": (lambda: {"model": ORIGINAL}, False),
    "another prefix": (lambda: {f"net.{key}": t for key, t in ORIGINAL.items()}, False),
    "other": (lambda: torch.nn.Linear(2, 2).state_dict(), False),
}


@pytest.mark.parametrize("name", FILES)
def test_a_controlnet_is_recognised_as_by_diffusers(name, tmp_path):
    make_content, is_controlnet = FILES[name]
    content = make_content()
    torch.save(content, tmp_path / "control.pth")
    model_type = infer_diffusers_model_type(content.get("state_dict", content))
    assert model_type.startswith("controlnet") == is_controlnet
    layout = find_single_file_layout(open_checkpoint(tmp_path / "control.pth"))
    assert (layout is not None) == is_controlnet


def test_the_message_names_the_call(tmp_path):
    torch.save(ORIGINAL, tmp_path / "control.pth")
    with pytest.raises(UsageError, match=r"ControlNetModel\.from_single_file\(\) of diffusers"):
        ckptool.diff(tmp_path / "control.pth")
