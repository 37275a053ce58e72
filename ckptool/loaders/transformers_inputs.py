"""Configuration of a transformers model -> inputs of its forward."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptool.loaders.transformers_images import make_image_and_text_inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

SEED: Final = 0
_TOKENS: Final = 8
_FRAMES: Final = 32
"""Frames of audio features, where the configuration fixes no number of them."""
_IMAGE_SIZE: Final = 64
"""Height and width in pixels, for models that take any."""
_SAMPLED_FRAMES: Final = 8
"""Frames that the convolutions of an audio model make of the samples."""
_WHISPER_STRIDE: Final = 2
"""Frames that Whisper's convolutions make one position of."""


def make_model_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return small inputs: token ids below vocab_size, images of the configured size, audio.

    An encoder-decoder model also gets ids for its decoder, and a text about an image has a token
    for each of its features. {} where the configuration does not say what forward takes.
    """
    import torch

    config: Any = module.config
    names = inspect.signature(module.forward).parameters
    generator = torch.Generator().manual_seed(SEED)
    inputs: dict[str, Any] = {}
    for name in _choose_names(module, config, names):
        tensor = _MAKERS[name](config, generator)
        if tensor is None:
            return {}
        inputs[name] = tensor
    if inputs.keys() == {"input_ids", "pixel_values"}:
        return make_image_and_text_inputs(module, inputs["pixel_values"], generator) or inputs
    return inputs


def _choose_names(module: Any, config: Any, names: Mapping[str, Any]) -> list[str]:
    """Return the arguments of forward that need a value; [] if the main one is not known."""
    main_name = getattr(module, "main_input_name", "input_ids")
    if main_name not in _MAKERS:
        main_name = getattr(getattr(module, "encoder", None), "main_input_name", "")
    if main_name not in names or main_name not in _MAKERS:
        return []
    is_image_and_text = hasattr(config, "vision_config") and main_name == "input_ids"
    others = {
        "input_ids": main_name == "pixel_values" and hasattr(config, "text_config"),
        "pixel_values": is_image_and_text,
        "decoder_input_ids": getattr(config, "is_encoder_decoder", False),
    }
    chosen = [main_name, *(name for name, is_needed in others.items() if is_needed)]
    return [name for name in dict.fromkeys(chosen) if name in names]


def _make_token_ids(config: Any, generator: "torch.Generator") -> "torch.Tensor | None":
    return _sample_ids(_find_field(config, "vocab_size", "text_config", "encoder"), generator)


def _make_decoder_ids(config: Any, generator: "torch.Generator") -> "torch.Tensor | None":
    vocab_size = _find_field(config, "vocab_size", "decoder", "text_config")
    vocab_size = vocab_size or _find_field(config, "decoder_vocab_size")
    return _sample_ids(vocab_size, generator)


def _sample_ids(vocab_size: Any, generator: "torch.Generator") -> "torch.Tensor | None":
    import torch

    if not isinstance(vocab_size, int) or vocab_size < 1:
        return None
    return torch.randint(vocab_size, (1, _TOKENS), generator=generator)


def _make_image(config: Any, generator: "torch.Generator") -> "torch.Tensor | None":
    import torch

    size = _find_field(config, "image_size", "vision_config", "encoder") or _IMAGE_SIZE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = _find_field(config, "num_channels", "vision_config", "encoder") or 3
    return torch.rand(1, channels, height, width, generator=generator)


def _make_features(config: Any, generator: "torch.Generator") -> "torch.Tensor | None":
    """Return audio features: [1, mel bins, frames] of Whisper, else [1, frames, features]."""
    import torch

    num_mel_bins = _find_field(config, "num_mel_bins", "audio_config", "encoder")
    positions = _find_field(config, "max_source_positions", "audio_config", "encoder")
    if num_mel_bins and positions:
        shape = (1, num_mel_bins, _WHISPER_STRIDE * positions)
        return torch.rand(shape, generator=generator)
    width = _find_field(config, "input_feat_per_channel", "encoder")
    width = width or _find_field(config, "feature_projection_input_dim", "encoder")
    return torch.rand(1, _FRAMES, width, generator=generator) if width else None


def _make_samples(config: Any, generator: "torch.Generator") -> "torch.Tensor | None":
    """Return raw audio, [1, samples], or a spectrogram, [1, frames, mel bins]."""
    import torch

    kernels = _find_field(config, "conv_kernel", "encoder")
    strides = _find_field(config, "conv_stride", "encoder")
    if kernels and strides:
        nsamples = _SAMPLED_FRAMES
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            nsamples = (nsamples - 1) * stride + kernel
        return torch.rand(1, nsamples, generator=generator)
    num_mel_bins, max_length = (_find_field(config, n) for n in ("num_mel_bins", "max_length"))
    if not (num_mel_bins and max_length):
        return None
    return torch.rand(1, max_length, num_mel_bins, generator=generator)


_MAKERS: Final[Mapping[str, Callable[[Any, "torch.Generator"], "torch.Tensor | None"]]] = {
    "input_ids": _make_token_ids,
    "pixel_values": _make_image,
    "input_features": _make_features,
    "input_values": _make_samples,
    "decoder_input_ids": _make_decoder_ids,
}
"""Argument of forward -> its value for a configuration; None if that does not say enough."""


def _find_field(config: Any, name: str, *parts: str) -> Any:
    """Return a field of the first of the configuration's `parts` that has it, else its own."""
    for holder in (*(getattr(config, part, None) for part in parts), config):
        value = getattr(holder, name, None)
        if value is not None:
            return value
    return None
