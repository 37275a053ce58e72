"""Configuration of a transformers model -> inputs of its forward."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import nn

SEED: Final = 0
_TOKENS: Final = 8


def make_model_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return small inputs: token ids below vocab_size, images of the configured size.

    {} where the configuration does not say what forward takes.
    """
    import torch

    config: Any = module.config
    names = inspect.signature(module.forward).parameters
    generator = torch.Generator().manual_seed(SEED)
    inputs: dict[str, Any] = {}
    text_config = getattr(config, "text_config", config)
    vision_config = getattr(config, "vision_config", config)
    main_name = getattr(module, "main_input_name", "input_ids")
    vocab_size = getattr(text_config, "vocab_size", None)
    if "input_ids" in names and isinstance(vocab_size, int) and vocab_size > 0:
        inputs["input_ids"] = torch.randint(vocab_size, (1, _TOKENS), generator=generator)
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
            inputs["decoder_input_ids"] = inputs["input_ids"].clone()
    image_size = getattr(vision_config, "image_size", None)
    if "pixel_values" in names and (main_name == "pixel_values" or vision_config is not config):
        if not image_size:
            return {}
        height, width = image_size if isinstance(image_size, list | tuple) else [image_size] * 2
        channels = getattr(vision_config, "num_channels", 3)
        inputs["pixel_values"] = torch.rand(1, channels, height, width, generator=generator)
    return inputs if main_name in inputs else {}
