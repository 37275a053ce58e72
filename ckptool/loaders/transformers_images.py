"""Vision-language model -> inputs of forward: a token of the text for each feature of the image.

How many features a model makes of an image depends on its class, so that the model is asked. What
is returned has been run.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptool.modules.user_code import UserCodeError, user_code

if TYPE_CHECKING:
    import torch
    from torch import nn

_TOKENS_AROUND: Final = 4
"""Tokens of text before and after those of the image."""
_PATCH_COUNTS: Final = (1, 5)
"""Images that a model may want to be given of one: itself, and it with its four quarters."""
_COUNT_FIELDS: Final = ("num_query_tokens", "image_seq_length", "mm_tokens_per_image")
"""Fields of configurations with the number of tokens of an image."""


def make_image_and_text_inputs(
    module: "nn.Module", image: "torch.Tensor", generator: "torch.Generator"
) -> Mapping[str, Any]:
    """Return inputs that the model has run with; {} if none of the usual forms fits it.

    Args:
        module: a model of transformers; {} unless its configuration names a token for images.
        image: [1, channels, height, width].
        generator: source of the tokens of the text, and of the patches of a grid.
    """
    import torch

    image_token = _find_image_token(module.config)
    if image_token is None:
        return {}
    for image_inputs in _iter_image_inputs(module, image, generator):
        for count in _list_token_counts(module, image_inputs):
            inputs = {"input_ids": _make_ids(module, image_token, count, generator), **image_inputs}
            names = inspect.signature(module.forward).parameters
            if "mm_token_type_ids" in names:
                is_image = inputs["input_ids"] == image_token
                inputs["mm_token_type_ids"] = is_image.to(torch.int32)
            if _runs(module, inputs):
                return inputs
    return {}


def _find_image_token(config: Any) -> int | None:
    """Return the id of the token that stands for a feature of an image; None without."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int) and 0 <= value < config.get_text_config().vocab_size:
            return value
    return None


def _iter_image_inputs(
    module: Any, image: "torch.Tensor", generator: "torch.Generator"
) -> Iterator[dict[str, Any]]:
    """Yield the forms in which models take an image: patches of a grid, images, lists of them."""
    import torch

    names = inspect.signature(module.forward).parameters
    if "image_grid_thw" in names:
        vision = module.config.vision_config
        side = 2 * getattr(vision, "spatial_merge_size", 1)
        depth = getattr(vision, "temporal_patch_size", 1)
        width = image.shape[1] * depth * vision.patch_size**2
        patches = torch.rand(side * side, width, generator=generator)
        yield {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]])}
        return
    images = [image, *(image.repeat(count, 1, 1, 1)[None] for count in _PATCH_COUNTS)]
    for sizes in ({}, {"image_sizes": torch.tensor([image.shape[-2:]])}):
        if sizes.keys() <= names.keys():
            yield from ({"pixel_values": values, **sizes} for values in images)


def _list_token_counts(module: Any, image_inputs: Mapping[str, Any]) -> list[int]:
    """Return how many tokens the image may need, the number of features that it gives first."""
    counts = [_count_features(module, image_inputs)]
    configs = (module.config, getattr(module.config, "vision_config", None))
    counts += [getattr(config, name, None) for config in configs for name in _COUNT_FIELDS]
    return [*dict.fromkeys(count for count in counts if isinstance(count, int) and count > 0)]


def _count_features(module: Any, image_inputs: Mapping[str, Any]) -> int | None:
    """Return how many features the model makes of the image; None if it cannot be asked."""
    import torch

    if not hasattr(module, "get_image_features"):
        return None
    try:
        with user_code(), torch.no_grad():
            output = module.eval().get_image_features(**image_inputs)
    except UserCodeError:
        return None
    features = getattr(output, "pooler_output", output)
    tensors = features if isinstance(features, list | tuple) else [features]
    if not all(isinstance(tensor, torch.Tensor) and tensor.ndim for tensor in tensors):
        return None
    return sum(int(tensor.numel() // max(tensor.shape[-1], 1)) for tensor in tensors)


def _make_ids(
    module: Any, image_token: int, count: int, generator: "torch.Generator"
) -> "torch.Tensor":
    """Return token ids, [1, tokens], with `count` of the image between those of the text."""
    import torch

    config = module.config
    special_tokens = {value for name, value in vars(config).items() if "token_i" in name}
    vocab_size = config.get_text_config().vocab_size
    plain_tokens = [i for i in range(min(vocab_size, 1024)) if i not in special_tokens]
    choice = torch.randint(len(plain_tokens), (2, _TOKENS_AROUND), generator=generator)
    before, after = torch.tensor(plain_tokens)[choice]
    return torch.cat([before, torch.full((count,), image_token), after])[None]


def _runs(module: "nn.Module", inputs: Mapping[str, Any]) -> bool:
    import torch

    try:
        with user_code(), torch.no_grad():
            module.eval()(**inputs)
    except UserCodeError:
        return False
    return True
