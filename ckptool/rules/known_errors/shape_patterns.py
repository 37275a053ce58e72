"""Shape mismatches -> explanations: what a key and its two shapes say of the cause."""

import re
from collections.abc import Callable, Iterator
from math import prod
from typing import Final

from msgspec import Struct

from ckptool.phrases import pluralize
from ckptool.rules.known_errors.key_lists import KeyDifference, ShapeMismatch
from ckptool.rules.known_errors.key_matches import HEAD_NAME
from ckptool.rules.known_errors.key_patterns import DIFF
from ckptool.rules.known_errors.known_error import (
    Advice,
    Certainty,
    ErrorFacts,
    Explanation,
    fill_advice,
    fill_words,
)


class ShapePattern(Struct, frozen=True):
    """A cause of shape mismatches. `cause` and `advice` are format strings."""

    name: str
    fits: Callable[[ShapeMismatch], bool]
    cause: str
    """Fields: `key`, `file_shape`, `module_shape`, `file_rows`, `module_rows`, `others`."""
    certainty: Certainty
    advice: tuple[Advice, ...]


def explain_shapes(difference: KeyDifference, facts: ErrorFacts) -> Iterator[Explanation]:
    """Yield an explanation for each cause of shape mismatches, with one key as its example."""
    groups: dict[str, list[ShapeMismatch]] = {}
    for mismatch in difference.mismatches:
        pattern = next(pattern for pattern in SHAPE_PATTERNS if pattern.fits(mismatch))
        groups.setdefault(pattern.name, []).append(mismatch)
    for pattern in SHAPE_PATTERNS:
        mismatches = groups.get(pattern.name)
        if mismatches:
            words = {**facts.words, **_describe_mismatches(mismatches)}
            yield Explanation(
                pattern.name,
                fill_words(pattern.cause, words),
                pattern.certainty,
                fill_advice(pattern.advice, words),
            )


def _describe_mismatches(mismatches: list[ShapeMismatch]) -> dict[str, str]:
    first = next((m for m in mismatches if m.key.endswith("weight")), mismatches[0])
    more = len(mismatches) - 1
    return {
        "key": first.key,
        "file_shape": str([*first.file_shape]),
        "module_shape": str([*first.module_shape]),
        "file_rows": str(first.file_shape[0] if first.file_shape else 0),
        "module_rows": str(first.module_shape[0] if first.module_shape else 0),
        "others": f" (and {pluralize(more, 'more tensor')})" if more else "",
    }


_EMBEDDING_NAME: Final = re.compile(
    r"(?:^|\.)(?:\w*embed_tokens|\w*word_embeddings|wte|tok_embeddings|token_embedding\w*|tok_emb"
    r"|lm_head|shared|embed_in|embed_out|embedding|emb|predictions|predictions\.decoder"
    r"|lm_head\.decoder)\.(?:weight|bias)$"
)
_POSITION_NAME: Final = re.compile(
    r"(?:^|\.)(?:pos_embed\w*|\w*position_embed\w*|wpe|pos_emb\w*|\w*positional_embedding"
    r"|relative_position_bias_table|relative_position_index|pe|embed_positions)(?:\.weight)?$"
)


def _differs_in_rows_only(mismatch: ShapeMismatch) -> bool:
    old, new = mismatch.file_shape, mismatch.module_shape
    return bool(old) and len(old) == len(new) and old[1:] == new[1:]


def _is_empty(mismatch: ShapeMismatch) -> bool:
    return mismatch.file_shape == (0,)


def _is_packed(mismatch: ShapeMismatch) -> bool:
    """Whether the file has two 4-bit values in each byte, in one column, as bitsandbytes."""
    numel, packed = prod(mismatch.module_shape), prod(mismatch.file_shape)
    is_column = len(mismatch.file_shape) == 2 and mismatch.file_shape[1] == 1
    return is_column and len(mismatch.module_shape) > 1 and numel == 2 * packed


def _is_transposed(mismatch: ShapeMismatch) -> bool:
    old, new = mismatch.file_shape, mismatch.module_shape
    return len(old) == 2 and old == new[::-1]


def _is_reshaped(mismatch: ShapeMismatch) -> bool:
    old, new = mismatch.file_shape, mismatch.module_shape
    return prod(old) == prod(new) and [n for n in old if n != 1] == [n for n in new if n != 1]


def _is_flat(mismatch: ShapeMismatch) -> bool:
    return len(mismatch.file_shape) == 1 and prod(mismatch.file_shape) == prod(
        mismatch.module_shape
    )


def _is_vocabulary(mismatch: ShapeMismatch) -> bool:
    return bool(_EMBEDDING_NAME.search(mismatch.key)) and _differs_in_rows_only(mismatch)


def _is_head(mismatch: ShapeMismatch) -> bool:
    return bool(HEAD_NAME.search(mismatch.key)) and _differs_in_rows_only(mismatch)


def _is_position(mismatch: ShapeMismatch) -> bool:
    return bool(_POSITION_NAME.search(mismatch.key))


def _is_first_convolution(mismatch: ShapeMismatch) -> bool:
    """Whether only the number of input channels of a convolution differs: RGB or grey images."""
    old, new = mismatch.file_shape, mismatch.module_shape
    return (
        len(old) == len(new) == 4
        and (old[0], *old[2:]) == (new[0], *new[2:])
        and min(old[1], new[1]) <= 4
    )


def _is_any(mismatch: ShapeMismatch) -> bool:  # noqa: ARG001
    return True


SHAPE_PATTERNS: Final = (
    ShapePattern(
        name="empty-shard",
        fits=_is_empty,
        cause=(
            "`{key}`{others} has no elements in the checkpoint: the weights were sharded "
            "(DeepSpeed "
            "ZeRO-3, FSDP) and not gathered when they were saved"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("to see which tensors are empty", command="ckptool inspect {file:path}"),
            Advice(
                "collect the weights from the whole folder that training wrote",
                command="python zero_to_fp32.py CHECKPOINT_FOLDER OUTPUT_FOLDER",
            ),
        ),
    ),
    ShapePattern(
        name="packed-4bit",
        fits=_is_packed,
        cause=(
            "`{key}`{others} is packed to 4 bits in the checkpoint ({file_shape}), as bitsandbytes "
            "does it, and the model is a float one ({module_shape})"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("to see the scheme", command="ckptool inspect {file:path}"),
            Advice("load the model with the quantization_config it was saved with"),
        ),
    ),
    ShapePattern(
        name="vocabulary-size",
        fits=_is_vocabulary,
        cause=(
            "the vocabulary differs: `{key}`{others} has {file_rows} rows in the checkpoint and "
            "{module_rows} in the model (tokens were added or padded)"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "build the model with the size of the checkpoint, in transformers",
                code="model.resize_token_embeddings({file_rows})",
            ),
            DIFF,
        ),
    ),
    ShapePattern(
        name="number-of-classes",
        fits=_is_head,
        cause=(
            "the head differs: `{key}`{others} has {file_rows} outputs in the checkpoint and "
            "{module_rows} in the model (another number of classes)"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("build the model with {file_rows} classes, or leave the head of the file out"),
            Advice(
                "strict=False does not help with shapes; to train a new head",
                code=(
                    "own = model.state_dict(); model.load_state_dict({{key: value for key, value "
                    "in "
                    "state_dict.items() if key in own and value.shape == own[key].shape}}, "
                    "strict=False)"
                ),
            ),
            DIFF,
        ),
    ),
    ShapePattern(
        name="position-embeddings",
        fits=_is_position,
        cause=(
            "the position embeddings differ: `{key}`{others} is {file_shape} in the checkpoint and "
            "{module_shape} in the model (another image size, patch size or context length)"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("build the model for the size of the checkpoint, or interpolate the embeddings"),
            DIFF,
        ),
    ),
    ShapePattern(
        name="transposed",
        fits=_is_transposed,
        cause=(
            "`{key}`{others} is transposed ({file_shape} in the checkpoint, {module_shape} in the "
            "model): Linear against Conv1D of GPT-2, or weights of another framework"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "write a checkpoint with the transposed tensors",
                command="ckptool migrate {file:path} -o {result:sh} {module_options}",
            ),
            DIFF,
        ),
    ),
    ShapePattern(
        name="reshaped",
        fits=_is_reshaped,
        cause=(
            "`{key}`{others} differs in dimensions of size 1 only ({file_shape} in the checkpoint, "
            "{module_shape} in the model): for example Linear against a 1x1 convolution"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "write a checkpoint with the shapes of the module",
                command="ckptool migrate {file:path} -o {result:sh} {module_options}",
            ),
            DIFF,
        ),
    ),
    ShapePattern(
        name="flattened",
        fits=_is_flat,
        cause=(
            "`{key}`{others} was saved flat: {file_shape} for {module_shape}, as FSDP saves shards"
        ),
        certainty=Certainty.POSSIBLE,
        advice=(Advice("to see what the file contains", command="ckptool inspect {file:path}"),),
    ),
    ShapePattern(
        name="input-channels",
        fits=_is_first_convolution,
        cause=(
            "`{key}`{others} has another number of input channels: {file_shape} in the checkpoint, "
            "{module_shape} in the model"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("build the model with the channels of the checkpoint (RGB has 3, grey 1)"),
            DIFF,
        ),
    ),
    ShapePattern(
        name="other-sizes",
        fits=_is_any,
        cause=(
            "the model was built with other sizes: `{key}`{others} is {file_shape} in the "
            "checkpoint and {module_shape} in the model"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("build the model with the arguments that it was trained with"),
            DIFF,
        ),
    ),
)
