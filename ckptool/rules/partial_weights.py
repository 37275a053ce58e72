"""Checkpoint -> hits: weights of one rank, or without values (CK320, CK321, CK327, CK604)."""

from collections.abc import Iterator
from math import prod
from pathlib import PurePath
from typing import Final

from ckptool.compare.states import (
    is_rank_part,
    list_float_weights,
    list_placeholders,
    list_valueless_keys,
)
from ckptool.formats.rank_files import OTHER_TENSORS
from ckptool.formats.torch.archive_integrity import MISSING_CHECKSUMS
from ckptool.model import Checkpoint, Container, ContainerIssue, IssueKind
from ckptool.phrases import join_limited, quote_code, quote_python
from ckptool.rules.fixes.commands import name_result
from ckptool.rules.fixes.state_code import FULL_STATE_DICT, format_place, format_save_code
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.values.checkpoint_statistics import CheckpointStatistics

PARTITIONED_PARAMETERS: Final = "CK320"
"""Code of the one finding for all placeholders without elements."""
_MAX_LISTED: Final = 3
_MAX_MERGED: Final = 16
"""Files that a fix lists to be merged."""
_MERGE_WITH_FRAMEWORK: Final = (
    "Merge the files with the tool of the framework that wrote them: Megatron's"
    " tools/checkpoint/convert.py, DeepSpeed's zero_to_fp32.py or ds_to_universal.py, the"
    " conversion script of transformers."
)
_GATHER: Final = (
    f"Gather the parameters and save again. FSDP: on all ranks: {FULL_STATE_DICT}; then on rank 0:"
    " {code}. DeepSpeed: engine.save_16bit_model(FOLDER), with"
    " stage3_gather_16bit_weights_on_model_save in its configuration; a folder that it saved has a"
    " script that gathers: python zero_to_fp32.py FOLDER OUTPUT. Lazy modules: run forward once"
    " first."
)
_IGNORE_WHOLE_FILES: Final = "If each file is whole: --ignore CK321"


@check(
    Checkpoint,
    Rule(
        code="CK604",
        name="fsdp-flat-or-local",
        level=Level.ERROR,
        summary="`{key}` contains {what}",
        detail="it must be gathered before it can be loaded",
        why=(
            "FSDP's flat parameters and local shards have neither the keys nor the shapes of the "
            "module."
        ),
        fix=f"Save the full state_dict, on all ranks: {FULL_STATE_DICT}",
        example=(
            "with FSDP.state_dict_type(model, StateDictType.LOCAL_STATE_DICT):\n"
            "    torch.save(model.state_dict(), path)"
        ),
    ),
)
def find_fsdp_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            if "flat_param" in key and ("_flat_param" in key or key.endswith("flat_param")):
                yield hit(key, what="an FSDP flat parameter")
            elif tensor.wrapper and is_rank_part(tensor):
                yield hit(key, what="one rank's shard of a tensor")


@check(
    Checkpoint,
    Rule(
        code="CK327",
        name="weights-without-values",
        level=Level.WARNING,
        summary="{count} of {total} tensors have no values",
        detail="{reason}",
        why=(
            "A state_dict() of a module that is on meta, or whose parameters are still"
            " uninitialized, has keys, shapes and dtypes and nothing else. torch.save writes that"
            " silently, and loading the file gives no weights."
        ),
        fix=(
            "The values are not in the file: no migration restores them, and load_state_dict() with"
            " assign=True leaves the module without them. In the script that has them, with model"
            " on a real device and after its first forward: {code}"
        ),
        general_advice=(
            "The values are not in the file: no migration restores them, and load_state_dict() with"
            " assign=True leaves the module without them. In the script that has them, with model"
            " on a real device and after its first forward: "
            'torch.save(model.state_dict(), "FILE")'
        ),
        example='torch.save(nn.Linear(2, 2, device="meta").state_dict(), path)',
        gate=Level.ERROR,
    ),
)
def find_weights_without_values(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        keys_by_reason = list_valueless_keys(state)
        for reason, keys in keys_by_reason.items():
            listed_keys = join_limited(keys, _MAX_LISTED, quote_code)
            yield hit(
                keys[0],
                None,
                keys,
                count=len(keys),
                total=len(state.tensors),
                reason=f"{listed_keys} {'was' if len(keys) == 1 else 'were'} {reason}",
                at=state.at,
                code=format_save_code(checkpoint, state.at),
            )


_CODE_CONTAINERS: Final = {Container.TORCHSCRIPT, Container.TORCH_EXPORT}
"""Containers that are useful without a tensor: they contain code."""


@check_other_subject(
    Checkpoint,
    "CK327",
    summary="the file has no values",
    detail="{reason}",
    fix=(
        "Save the state of the module that was trained: {code}. If no values are meant to be in"
        " it: --ignore CK327"
    ),
)
def find_files_without_elements(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    tensors = [tensor for state in checkpoint.states for tensor in state.tensors.values()]
    if any(prod(tensor.shape) for tensor in tensors):
        return
    is_known = any(map(list_valueless_keys, checkpoint.states)) or any(
        map(list_placeholders, checkpoint.states)
    )
    is_code = checkpoint.container in _CODE_CONTAINERS or checkpoint.opaque
    is_unread = checkpoint.damage or checkpoint.faults
    if is_known or is_code or is_unread:
        return
    yield hit(
        "",
        reason=f"none of its {len(tensors)} tensors has an element"
        if tensors
        else "there is no tensor in it",
        code=format_save_code(checkpoint, ""),
    )


@check_other_subject(
    CheckpointStatistics,
    "CK327",
    summary="the file has no values",
    detail="all of its {count} floating-point tensors are zeros, and its records have no checksum:"
    " torch.save leaves space for them so, under torch.serialization.skip_data() and in"
    " FakeTensorMode",
    fix="Write the values into the file as well, or save it again without skip_data(): {code}",
)
def find_skipped_data(statistics: CheckpointStatistics) -> Iterator[RuleHit]:
    has_checksums = all(
        skipped.what != MISSING_CHECKSUMS for skipped in statistics.checkpoint.skipped
    )
    if has_checksums:
        return
    is_zero = [
        statistics.statistics[key].is_constant(0.0)
        for key, tensor in statistics.tensors.items()
        if tensor.dtype.startswith(("float", "bfloat")) and key in statistics.statistics
    ]
    if is_zero and all(is_zero):
        states = statistics.checkpoint.states
        at = states[0].at if len(states) == 1 else ""
        code = format_save_code(statistics.checkpoint, at)
        yield hit("", count=len(is_zero), code=code)


@check(
    Checkpoint,
    Rule(
        code=PARTITIONED_PARAMETERS,
        name="partitioned-parameters",
        level=Level.ERROR,
        summary="{count} of {total} parameters have no elements (shape [0]), {first} among them",
        detail=(
            "placeholders of parameters that are partitioned over the ranks of a run, or of lazy"
            " modules that were cast before their first forward"
        ),
        why=(
            "DeepSpeed's ZeRO-3 and FSDP leave an empty tensor of shape [0] in place of a "
            "parameter that is partitioned over the ranks. A state_dict() that is saved without "
            "gathering them first contains only these placeholders. So does one of LazyLinear "
            "whose uninitialized parameters are cast by half(): the values are in no file."
        ),
        fix=_GATHER.format(code="{code}"),
        general_advice=_GATHER.format(code='torch.save(state_dict, "FILE")'),
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
                total=len(list_float_weights(state)),
                first=join_limited(keys, _MAX_LISTED, quote_code),
                at=state.at,
                code=format_save_code(checkpoint, state.at, "state_dict"),
            )


@check(
    Checkpoint,
    Rule(
        code="CK321",
        name="file-of-one-rank",
        level=Level.WARNING,
        summary="{key} is one of {count} files of one run, with {others}",
        detail="{content}",
        why=(
            "Tensor parallelism (Megatron, DeepSpeed, Meta's consolidated.00.pth) splits each"
            " weight over the ranks: all keys are there, and shapes are a fraction of the module's."
            " Along which dimension a weight is split is only in the framework's code, so that"
            " slices are merged by its tool."
        ),
        fix="{advice}",
        general_advice=f"{_MERGE_WITH_FRAMEWORK} {_IGNORE_WHOLE_FILES}",
        example=(
            'torch.save(model.state_dict(), f"mp_rank_{rank:02d}/model_optim_rng.pt")'
            "  # on each rank"
        ),
    ),
)
def find_file_of_one_rank(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.RANK_FILE:
            advice = _advise_merge(checkpoint, issue)
            yield hit(issue.key, None, (), **issue.facts, advice=advice)


def _advise_merge(checkpoint: Checkpoint, issue: ContainerIssue) -> str:
    """Return how the files of all ranks become one: in code, if each has other keys."""
    names = issue.facts.get("names", "").split("\n")
    if issue.facts["content"] != OTHER_TENSORS or len(names) > _MAX_MERGED:
        return f"{_MERGE_WITH_FRAMEWORK} {_IGNORE_WHOLE_FILES}"
    at = checkpoint.states[0].at if len(checkpoint.states) == 1 else ""
    folder = PurePath(str(checkpoint.path)).parent
    paths = ", ".join(quote_python(str(folder / name)) for name in names)
    place = format_place(at).removeprefix("checkpoint")
    result = quote_python(name_result(checkpoint, participle="merged"))
    return (
        "Each has other keys, so that they are merged by their keys: state_dict = {}; "
        f"[state_dict.update(torch.load(path){place}) for path in ({paths})]; "
        f"torch.save(state_dict, {result}). {_IGNORE_WHOLE_FILES}"
    )
