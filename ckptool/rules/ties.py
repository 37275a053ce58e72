"""CK50x: keys that share memory."""

from collections.abc import Iterator, Sequence
from typing import Final

from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.left_out_ties import find_retied_keys, restore_declared_ties
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    StateDict,
    TensorInfo,
    tied_keys,
)
from ckptool.phrases import join_limited, quote_code, quote_python
from ckptool.rules.fixes.commands import advise_conversion, format_migrate_command
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit

_STORE_ONCE: Final = "store it once, with the tie in the metadata"


@check(
    ModuleDiff,
    Rule(
        code="CK501",
        name="tie-group-mismatch",
        level=Level.ERROR,
        summary="`{key}` and {others} are one tensor in {who}{effect}",
        why=(
            "Tied weights are one tensor under two names. If the file and the module disagree, a "
            "key is missing, or tied values are loaded into a module that trains them separately."
        ),
        fix="Make the file and the module agree on what is tied. {remedy}",
        general_advice=(
            "Make the file and the module agree on what is tied: tie them in the module, or "
            "load with strict=False if only a tied name is missing."
        ),
        example=(
            "model.head.weight = model.emb.weight\n"
            'save_file({"emb.weight": model.emb.weight}, "model.safetensors")\n'
            'model.load_state_dict(load_file("model.safetensors"))  # head.weight is missing'
        ),
    ),
)
def find_tie_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key, file_key in diff.tied_missing_keys.items():
        is_restored = key in diff.retied_keys
        lenient_advice = "load with strict=False: nothing is lost"
        loader_advice = (
            "To load it: safetensors.torch.load_model(module, path); with load_state_dict()"
        )
        yield hit(
            key,
            Level.NOTE if is_restored else Level.WARNING,
            (key, file_key),
            others=f"`{file_key}`",
            who="the module",
            effect=f"; the file has it as `{file_key}` only, as safetensors does",
            remedy=(
                f"{loader_advice}, pass strict=False: nothing is lost"
                if is_restored
                else f"{format_migrate_command(diff)}; or {lenient_advice}"
            ),
            keys=[key, file_key],
        )
    yield from _find_untied_groups(diff)


def _find_untied_groups(diff: ModuleDiff) -> Iterator[RuleHit]:
    """Yield groups of keys that are tied in the file and not in the module."""
    saved_tensors = diff.module.saved_tensors
    module_groups = tied_keys(module_tensor.tensor for module_tensor in saved_tensors.values())
    group_numbers = {key: number for number, group in enumerate(module_groups) for key in group}
    for group in diff.state.ties:
        saved_keys = [key for key in group if key in saved_tensors]
        group_ids = {group_numbers.get(key, key) for key in saved_keys}
        if len(group_ids) > 1:
            yield hit(
                saved_keys[0],
                Level.NOTE,
                saved_keys,
                others=", ".join(map(quote_code, saved_keys[1:])),
                who="the file",
                effect=", and separate in the module: equal after loading, and then trained "
                "separately",
                remedy=(
                    "Tie them in the module if they belong together: "
                    "module.head.weight = module.embedding.weight, for example."
                ),
                keys=saved_keys,
            )


@check(
    Checkpoint,
    Rule(
        code="CK503",
        name="shared-storage",
        level=Level.NOTE,
        summary="`{key}` shares its storage with {others}",
        detail="{how}",
        why=(
            "Tied weights are no longer shared when they are copied one by one, and safetensors "
            "refuses tensors that share memory."
        ),
        fix=("Nothing, if it is intended. To save a copy of its own: {code}{remedy}"),
        general_advice=(
            "Nothing, if it is intended. To save a copy of its own: state_dict[KEY] = "
            "state_dict[KEY].clone()"
        ),
        example=(
            "head.weight = embedding.weight\n"
            'torch.save({"emb": embedding.weight, "head": head.weight}, path)'
        ),
    ),
)
def find_shared_storages(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    yield from _find_left_out_names(checkpoint)
    is_single = len(checkpoint.states) == 1 and not checkpoint.entries
    remedy = advise_conversion(checkpoint, _STORE_ONCE, suffix=".safetensors") if is_single else ""
    for state in checkpoint.states:
        for group in _group_by_memory(state):
            keys = [tensor.key for tensor in group]
            is_tied = tied_keys(group) == (tuple(keys),)
            yield hit(
                keys[0],
                others=join_limited(keys[1:], 3, quote_code, more=" ..."),
                how="they are one tensor (tied)" if is_tied else "they are views of it",
                keys=keys,
                code=_format_clone_code(keys[0], keys[0]),
                remedy=f".{remedy}" * bool(remedy and is_tied),
            )


def _group_by_memory(state: StateDict) -> Iterator[Sequence[TensorInfo]]:
    """Yield tensors that have memory in common, and not a storage alone.

    The weights of an LSTM on CUDA, and those of a flattened optimizer, lie side by side in one
    storage: cuDNN's buffer. They are no ties, and safetensors saves them.
    """
    for group in state.storage_groups:
        overlapping: list[TensorInfo] = []
        end = 0
        for tensor in sorted(group, key=_find_first_byte):
            if overlapping and _find_first_byte(tensor) >= end:
                if len(overlapping) > 1:
                    yield _keep_order(group, overlapping)
                overlapping = []
            overlapping.append(tensor)
            end = max(end, _find_end_byte(tensor))
        if len(overlapping) > 1:
            yield _keep_order(group, overlapping)


def _keep_order(group: Sequence[TensorInfo], members: Sequence[TensorInfo]) -> Sequence[TensorInfo]:
    keys = {tensor.key for tensor in members}
    return [tensor for tensor in group if tensor.key in keys]


def _find_first_byte(tensor: TensorInfo) -> int:
    return tensor.storage_offset * DTYPE_BITS.get(tensor.dtype, 8) // 8


def _find_end_byte(tensor: TensorInfo) -> int:
    """Return the offset after its last element: of an interleaved view, that of others too."""
    steps = zip(tensor.shape, tensor.stride, strict=True)
    last = tensor.storage_offset + sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * DTYPE_BITS.get(tensor.dtype, 8) // 8


def _format_clone_code(name: str, key: str) -> str:
    return f"state_dict[{quote_python(name)}] = state_dict[{quote_python(key)}].clone()"


def _find_left_out_names(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    """Yield the keys of a safetensors file whose other names its metadata declares as tied."""
    for state in checkpoint.states:
        tensors = restore_declared_ties(checkpoint, state.tensors)
        names_by_key: dict[str, list[str]] = {}
        for name, key in find_retied_keys(checkpoint.container, tensors).items():
            names_by_key.setdefault(key, []).append(name)
        for key, names in names_by_key.items():
            yield hit(
                key,
                others=join_limited(names, 3, quote_code, more=" ..."),
                how="they are one tensor (tied), which safetensors stores under this name alone",
                keys=[key, *names],
                code=_format_clone_code(names[0], key),
                remedy="",
            )


@check(
    ModuleDiff,
    Rule(
        code="CK502",
        name="tied-diverged",
        level=Level.ERROR,
        summary="`{key}` and `{other}` are tied, and have different values in the file{effect}",
        why=(
            "Loading writes both values into one tensor: the later one wins, and the other is "
            "silently lost. from_pretrained() of transformers and diffusers leaves them separate "
            "instead, even if the configuration or the class ties them."
        ),
        fix=(
            "Find out which one was trained, and save both from it: state_dict[{other:py}] = "
            "state_dict[{key:py}], or the other way round.{remedy}"
        ),
        example=(
            "model.head.weight = model.emb.weight\n"
            'state = {"emb.weight": torch.zeros(3, 2), "head.weight": torch.ones(3, 2)}\n'
            "model.load_state_dict(state)  # emb.weight is all ones now"
        ),
    ),
)
def find_diverged_ties(diff: ModuleDiff) -> Iterator[RuleHit]:
    report = diff.loading_info
    for key, other_key in diff.diverged_ties:
        is_separated = report is not None and other_key not in report.overwritten_keys
        effect = ""
        if report is not None:
            effect = (
                f"; {report.loader} loads both and does not tie them"
                if is_separated
                else f"; {report.loader} loads `{key}` over `{other_key}`, whose values are lost"
            )
        yield hit(
            key,
            Level.WARNING if is_separated else Level.ERROR,
            other=other_key,
            effect=effect,
            remedy=_SEPARATE_ADVICE if diff.module.loader == "transformers" else "",
        )


_SEPARATE_ADVICE: Final = " If both were, set tie_word_embeddings to false in config.json."


@check_other_subject(
    CheckpointDiff,
    "CK502",
    summary=(
        "`{key}` and `{other}` are tied in the old file, and have different values in the new one"
    ),
)
def find_ties_diverged_in_new(diff: CheckpointDiff) -> Iterator[RuleHit]:
    for key, other_key in diff.diverged_ties:
        yield hit(key, other=other_key, remedy="")
