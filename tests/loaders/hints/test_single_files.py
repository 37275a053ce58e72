"""A file without a configuration is recognised by its keys as diffusers recognises it."""

import pytest
import torch

import ckptool
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.loaders.hints.single_files import find_single_file_layout

pytest.importorskip("diffusers")

import diffusers
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


TEXT_ENCODER = {"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.ones(4)}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CROSS = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
LAST = "model.diffusion_model.output_blocks.11.0.skip_connection.weight"
UNET_1 = {FIRST: torch.ones(4, 4, 3, 3), CROSS: torch.ones(4, 768), LAST: torch.ones(4, 4, 1, 1)}
UNET_2 = {**UNET_1, CROSS: torch.ones(4, 1024)}
XL = {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.ones(4)}
NINE = {FIRST: torch.ones(4, 9, 3, 3)}
MOTION = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    ".pos_encoder.pe"
)
MODEL_TYPES = {
    "v1": ({**UNET_1, **TEXT_ENCODER}, "StableDiffusionPipeline"),
    "v2": ({**UNET_2, **TEXT_ENCODER}, "StableDiffusionPipeline"),
    "inpainting": ({**UNET_1, **TEXT_ENCODER, **NINE}, "StableDiffusionInpaintPipeline"),
    "inpainting_v2": ({**UNET_2, **TEXT_ENCODER, **NINE}, "StableDiffusionInpaintPipeline"),
    "xl_base": ({FIRST: torch.ones(4, 4, 3, 3), **XL}, "StableDiffusionXLPipeline"),
    "xl_inpaint": ({**XL, **NINE}, "StableDiffusionXLInpaintPipeline"),
    "xl_refiner": (
        {key.replace("embedders.1", "embedders.0"): value for key, value in XL.items()},
        "StableDiffusionXLImg2ImgPipeline",
    ),
    "sd3": (
        {"joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.ones(9216),
         "pos_embed": torch.ones(1, 36864)},
        "SD3Transformer2DModel",
    ),
    "animatediff_v1": (
        {MOTION: torch.ones(1, 24, 4),
         "up_blocks.2.motion_modules.0.temporal_transformer.norm.weight": torch.ones(4)},
        "MotionAdapter",
    ),
    "flux-2-dev": (
        {"single_stream_modulation.lin.weight": torch.ones(4)}, "Flux2Transformer2DModel"
    ),
    "flux-schnell": (
        {"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)},
        "FluxTransformer2DModel",
    ),
    "chroma": (
        {"distilled_guidance_layer.in_proj.bias": torch.ones(4),
         "double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)},
        "ChromaTransformer2DModel",
    ),
    "ltx-video": ({"patchify_proj.weight": torch.ones(4)}, "LTXVideoTransformer3DModel"),
    "hunyuan-video": (
        {"txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": torch.ones(4)},
        "HunyuanVideoTransformer3DModel",
    ),
    "wan-t2v-14B": (
        {"head.modulation": torch.ones(4), "patch_embedding.weight": torch.ones(5120, 16)},
        "WanTransformer3DModel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_file_of_one_model_type_is_recognised_as_by_diffusers(model_type, tmp_path):
    content, class_name = MODEL_TYPES[model_type]
    assert infer_diffusers_model_type(content) == model_type
    assert hasattr(getattr(diffusers, class_name), "from_single_file")
    torch.save(content, tmp_path / "model.ckpt")
    layout = find_single_file_layout(open_checkpoint(tmp_path / "model.ckpt"))
    assert layout is not None
    assert layout.loader == f"{class_name}.from_single_file()"


PARTS = {
    "a UNet": (UNET_1, "UNet2DConditionModel.from_single_file()"),
    "a UNet without its prefix": (
        {key.removeprefix("model.diffusion_model."): value for key, value in UNET_2.items()},
        "UNet2DConditionModel.from_single_file()",
    ),
    "a VAE": (
        {"decoder.mid.block_1.conv1.weight": torch.ones(4, 4, 3, 3)},
        "AutoencoderKL.from_single_file()",
    ),
    "a LoRA of kohya": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 4)},
        "load_lora_weights()",
    ),
    "a text encoder": ({"text_model.embeddings.position_embedding.weight": torch.ones(4)}, ""),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_pipeline_is_no_pipeline(name, tmp_path):
    content, call = PARTS[name]
    torch.save(content, tmp_path / "part.pth")
    with pytest.raises(UsageError, match="no module to compare it with") as caught:
        ckptool.diff(tmp_path / "part.pth")
    assert ("of diffusers loads it" in str(caught.value)) == bool(call)
    assert call in str(caught.value)


def test_the_message_names_the_call(tmp_path):
    torch.save(ORIGINAL, tmp_path / "control.pth")
    with pytest.raises(UsageError, match=r"ControlNetModel\.from_single_file\(\) of diffusers"):
        ckptool.diff(tmp_path / "control.pth")
