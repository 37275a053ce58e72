"""Checkpoint -> the class of diffusers that loads it without a configuration, by its keys."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ckptool.model import Checkpoint, TensorInfo

_UNET: Final = "model.diffusion_model."
"""Prefix of the denoising model in a file of a whole pipeline."""


class SingleFileLayout(Struct, frozen=True):
    """Keys by which diffusers recognises a model in a file without a configuration."""

    markers: tuple[str, ...]
    """Keys of the state that is loaded, of which the file has one."""
    loader: str
    """Class and method that load it."""
    description: str
    width: tuple[int, int] | None = None
    """Dimension and size that the marker's shape has; None if any fits."""
    part: str = ""
    """What a key of the file has to begin with as well: of a pipeline, its text encoder."""
    is_prefix: bool = False
    """Whether the markers are the beginning of keys."""


def _with_prefix(marker: str) -> tuple[str, ...]:
    return (marker, f"{_UNET}{marker}")


_FIRST_CONV: Final = f"{_UNET}input_blocks.0.0.weight"
_CROSS_ATTENTION: Final = f"{_UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
_TEXT_ENCODER: Final = "cond_stage_model."
_MOTION: Final = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    ".pos_encoder.pe"
)
_LAYOUTS: Final = (
    SingleFileLayout(
        (_FIRST_CONV,), "StableDiffusionInpaintPipeline.from_single_file()",
        "a Stable Diffusion pipeline for inpainting", (1, 9), _TEXT_ENCODER,
    ),
    SingleFileLayout(
        (_FIRST_CONV,), "StableDiffusionXLInpaintPipeline.from_single_file()",
        "a Stable Diffusion XL pipeline for inpainting", (1, 9), "conditioner.embedders.1.",
    ),
    SingleFileLayout(
        (_CROSS_ATTENTION,), "StableDiffusionPipeline.from_single_file()",
        "a Stable Diffusion 2 pipeline", (-1, 1024), _TEXT_ENCODER,
    ),
    SingleFileLayout(
        ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",),
        "StableDiffusionXLPipeline.from_single_file()", "a Stable Diffusion XL pipeline",
    ),
    SingleFileLayout(
        ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",),
        "StableDiffusionXLImg2ImgPipeline.from_single_file()",
        "the refiner of Stable Diffusion XL",
    ),
    SingleFileLayout(
        (f"{_UNET}input_blocks.10.0.skip_connection.bias",),
        "StableDiffusionUpscalePipeline.from_single_file()",
        "the upscaler of Stable Diffusion", part=_TEXT_ENCODER,
    ),
    SingleFileLayout(
        ("control_model.time_embed.0.weight",), "ControlNetModel.from_single_file()",
        "a ControlNet in its original layout (`control_model.*`)",
    ),
    SingleFileLayout(
        ("controlnet_cond_embedding.conv_in.weight",), "ControlNetModel.from_single_file()",
        "a ControlNet in the layout of diffusers",
    ),
    SingleFileLayout(
        _with_prefix("joint_blocks.0.context_block.adaLN_modulation.1.bias"),
        "SD3Transformer2DModel.from_single_file()", "the transformer of Stable Diffusion 3",
    ),
    SingleFileLayout(
        (_MOTION,), "MotionAdapter.from_single_file()", "a motion module of AnimateDiff"
    ),
    SingleFileLayout(
        _with_prefix("single_stream_modulation.lin.weight"),
        "Flux2Transformer2DModel.from_single_file()", "the transformer of FLUX.2",
    ),
    SingleFileLayout(
        _with_prefix("distilled_guidance_layer.in_proj.bias"),
        "ChromaTransformer2DModel.from_single_file()", "the transformer of Chroma",
    ),
    SingleFileLayout(
        _with_prefix("double_blocks.0.img_attn.norm.key_norm.scale"),
        "FluxTransformer2DModel.from_single_file()", "the transformer of FLUX.1",
    ),
    SingleFileLayout(
        _with_prefix("patchify_proj.weight"),
        "LTXVideoTransformer3DModel.from_single_file()", "the transformer of LTX-Video",
    ),
    SingleFileLayout(
        ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",),
        "HunyuanVideoTransformer3DModel.from_single_file()", "the transformer of HunyuanVideo",
    ),
    SingleFileLayout(
        _with_prefix("head.modulation"), "WanTransformer3DModel.from_single_file()",
        "the transformer of Wan",
    ),
    SingleFileLayout(
        (f"{_UNET}output_blocks.11.0.skip_connection.weight",),
        "StableDiffusionPipeline.from_single_file()", "a Stable Diffusion 1 pipeline",
        part=_TEXT_ENCODER,
    ),
    SingleFileLayout(
        ("output_blocks.11.0.skip_connection.weight", _FIRST_CONV, "input_blocks.0.0.weight"),
        "UNet2DConditionModel.from_single_file()", "a UNet of Stable Diffusion",
    ),
    SingleFileLayout(
        ("decoder.mid.block_1.conv1.weight", "first_stage_model.decoder.mid.block_1.conv1.weight"),
        "AutoencoderKL.from_single_file()", "a VAE of Stable Diffusion",
    ),
    SingleFileLayout(
        ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_"),
        "load_lora_weights() of its pipeline", "a LoRA of kohya's scripts (`lora_unet_*`)",
        is_prefix=True,
    ),
)  # fmt: skip
"""Layouts in the order in which diffusers looks for them, and then those of parts alone."""


def find_single_file_layout(checkpoint: Checkpoint) -> SingleFileLayout | None:
    """Return the layout whose marker is a key of the file, as diffusers looks for it; else None."""
    tensors = _collect_tensors(checkpoint)
    return next((layout for layout in _LAYOUTS if _has_marker(layout, tensors)), None)


def suggest_single_file(checkpoint: Checkpoint | None) -> str:
    """Return a sentence with the call of diffusers that loads the file, "" if none is known."""
    layout = find_single_file_layout(checkpoint) if checkpoint is not None else None
    if layout is None:
        return ""
    return (
        f". Its keys are those of {layout.description}: {layout.loader} of diffusers loads it, and"
        " save_pretrained() then writes a folder that ckptool judges"
    )


def _has_marker(layout: SingleFileLayout, tensors: Mapping[str, TensorInfo]) -> bool:
    if layout.part and not any(key.startswith(layout.part) for key in tensors):
        return False
    if layout.is_prefix:
        return any(key.startswith(layout.markers) for key in tensors)
    shapes = [tensors[marker].shape for marker in layout.markers if marker in tensors]
    if layout.width is None:
        return bool(shapes)
    dimension, size = layout.width
    return any(len(shape) > max(dimension, 0) and shape[dimension] == size for shape in shapes)


def _collect_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors that diffusers reads: those at `state_dict`, else of the root."""
    return {
        key: tensor
        for state in checkpoint.states
        if state.at in {"", "state_dict"}
        for key, tensor in state.tensors.items()
    }
