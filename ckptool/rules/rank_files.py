"""Checkpoint -> hits: files that have a part of the tensors only (CK320, CK321, CK604)."""

from collections.abc import Iterator
from typing import Final

from ckptool.model import Checkpoint, IssueKind, StateDict, TensorInfo
from ckptool.phrases import join_limited, quote_code
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    Checkpoint,
    Rule(
        code="CK604",
        name="fsdp-flat-or-local",
        level=Level.ERROR,
        summary="`{key}` holds {what}",
        detail="it must be gathered before it can be loaded",
        why=(
            "FSDP's flat parameters and local shards have neither the keys nor the shapes of the "
            "module."
        ),
        fix="Save again with a full state_dict, or gather it with torch.distributed.checkpoint.",
        example=(
            "with FSDP.state_dict_type(model, StateDictType.LOCAL_STATE_DICT):\n"
            "    torch.save(model.state_dict(), path)"
        ),
    ),
)
def find_fsdp_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            if "_flat_param" in key or key.endswith("flat_param"):
                yield hit(key, what="an FSDP flat parameter")
            elif "ShardedTensor" in tensor.wrapper or _is_rank_part(tensor):
                yield hit(key, what="one rank's shard of a tensor")


def _is_rank_part(tensor: TensorInfo) -> bool:
    """Whether it is a DTensor whose local tensor is not the whole."""
    return tensor.wrapper.endswith(".DTensor") and any(
        component.tensor.shape != tensor.shape for component in tensor.parts
    )


_OBSERVER_NAMES: Final = frozenset({"min_val", "max_val"})
"""Buffers that torch's observers make without elements."""
_MAX_LISTED: Final = 3


@check(
    Checkpoint,
    Rule(
        code="CK320",
        name="partitioned-parameters",
        level=Level.ERROR,
        summary="{count} of {total} parameters have no elements (shape [0]), {first} among them",
        detail="the ranks of a run have them in parts, and this file has placeholders",
        why=(
            "DeepSpeed's ZeRO-3 and FSDP leave an empty tensor of shape [0] in place of a parameter"
            " that is partitioned over the ranks. A state_dict() that is saved without gathering"
            " them first has nothing but these."
        ),
        fix=(
            "In a folder that DeepSpeed saved: python zero_to_fp32.py FOLDER OUTPUT (the script is"
            " in it). From now on gather first: stage3_gather_16bit_weights_on_model_save in the"
            " configuration and save_16bit_model(), or a full state_dict of FSDP."
        ),
        example=(
            "engine, *_ = deepspeed.initialize(model=model, config=zero_stage_3)\n"
            "torch.save(engine.module.state_dict(), path)  # each parameter is torch.Size([0])"
        ),
    ),
)
def find_partitioned_parameters(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        if keys := list_placeholders(state):
            yield hit(
                keys[0],
                None,
                keys,
                count=len(keys),
                total=len(_list_weights(state)),
                first=join_limited(keys, _MAX_LISTED, quote_code),
                at=state.at,
            )


def list_placeholders(state: StateDict) -> tuple[str, ...]:
    """Return the keys of the parameters that the ranks of a run hold in parts; () if none.

    Several tensors `weight` of shape [0], or every second floating-point tensor: no layer has so.
    """
    if state.role not in {"state_dict", "module"}:
        return ()
    weights = _list_weights(state)
    keys = tuple(tensor.key for tensor in weights if tensor.shape == (0,))
    weight_count = sum(key.rpartition(".")[2] == "weight" for key in keys)
    is_partitioned = weight_count > 1 or (len(keys) > 1 and 2 * len(keys) >= len(weights))
    return keys if is_partitioned else ()


def _list_weights(state: StateDict) -> list[TensorInfo]:
    return [
        tensor
        for tensor in state.tensors.values()
        if tensor.dtype.startswith(("float", "bfloat"))
        and tensor.key.rpartition(".")[2] not in _OBSERVER_NAMES
    ]


@check(
    Checkpoint,
    Rule(
        code="CK321",
        name="file-of-one-rank",
        level=Level.WARNING,
        summary="{key} is one of {count} files of one run, beside {others}",
        detail="each may have a part of the tensors, or a slice of each",
        why=(
            "Tensor parallelism (Megatron, DeepSpeed, Meta's consolidated.00.pth) splits each"
            " weight over the ranks: all keys are there, and shapes are a fraction of the module's."
        ),
        fix=(
            "Merge the files with the tool of the framework that wrote them: Megatron's"
            " tools/checkpoint/convert.py, DeepSpeed's zero_to_fp32.py or ds_to_universal.py, the"
            " conversion script of transformers. If each file is whole, ignore CK321."
        ),
        example=(
            'torch.save(model.state_dict(), f"mp_rank_{rank:02d}/model_optim_rng.pt")'
            "  # on each rank"
        ),
    ),
)
def find_file_of_one_rank(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.RANK_FILE:
            yield hit(issue.key, None, (), **issue.facts)
