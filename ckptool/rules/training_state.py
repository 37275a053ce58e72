"""Checkpoint -> hits: what training writes, also on each rank (CK305-CK327, CK604)."""

import re
from collections.abc import Iterator
from math import prod
from typing import Final

from ckptool.compare.states import (
    find_loaded_state,
    is_rank_part,
    list_float_weights,
    list_placeholders,
    list_valueless_keys,
)
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.formats.torch.archive_integrity import MISSING_CHECKSUMS
from ckptool.model import Checkpoint, Container, IssueKind, PlainEntry, StateDict, TensorInfo
from ckptool.phrases import join_limited, quote_code, quote_python
from ckptool.rules.fixes.commands import format_convert_command, name_result
from ckptool.rules.fixes.state_code import FULL_STATE_DICT
from ckptool.rules.registry import CONVERT, Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.values.checkpoint_statistics import CheckpointStatistics
from ckptool.verification.result import ObjectChanges

PARTITIONED_PARAMETERS: Final = "CK320"
"""Code of the one finding for all placeholders without elements."""
_LEGACY_CONTAINERS: Final = {
    Container.TORCH_LEGACY: "in the format of torch before 1.6, not a zip archive",
    Container.TORCH_TAR: "in the format of torch before 0.2 (tar), not a zip archive",
}


@check(
    Checkpoint,
    Rule(
        code="CK305",
        name="legacy-serialization",
        level=Level.WARNING,
        summary="the file is {what}",
        why=(
            "It cannot be memory-mapped (torch.load(mmap=True) refuses it), so every load reads "
            "and copies all of it; tools that read zip archives cannot open it; and files of "
            "that age were often written by Python 2."
        ),
        fix="To write the same content as a zip: {command}",
        general_command=CONVERT,
        example="torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)",
    ),
)
def find_legacy_serialization(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container in _LEGACY_CONTAINERS:
        yield hit(
            "",
            what=_LEGACY_CONTAINERS[checkpoint.container],
            command=format_convert_command(checkpoint),
        )


_TRAINING_STATE_NAMES: Final = {
    "optimizer": ("optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim"),
    "scheduler": (
        "scheduler", "schedulers", "lr_scheduler", "lr_schedulers", "scheduler_state_dict",
        "lr_scheduler_state_dict",
    ),
    "random number generators": (
        "rng", "rng_state", "rng_states", "random_states", "torch_rng_state", "cuda_rng_state",
    ),
    "gradient scaler": ("scaler", "grad_scaler", "amp", "amp_scaler", "scaler_state_dict"),
    "callbacks": ("callbacks",),
    "loops": ("loops",),
}  # fmt: skip
"""Kind of training state -> top-level names that frameworks and scripts use for it."""


_MAX_LISTED: Final = 3
_MAX_LEVELS: Final = 3
"""Levels of nesting at which an optimizer is told from the model beside it."""


@check(
    Checkpoint,
    Rule(
        code="CK309",
        name="training-state-in-release",
        level=Level.NOTE,
        summary="the file also contains training state",
        detail="{what}{nbytes}",
        why=(
            "Useful in a training run, dead weight in a release: the two moments of Adam are "
            "twice the size of the model, and callbacks and loops contain paths and settings of "
            "the machine."
        ),
        fix="For a release: {remedy}",
        general_advice=(
            "For a release: ckptool convert FILE -o NEW.safetensors --at model --weights-only"
        ),
        example=(
            'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)'
        ),
        gate=Level.WARNING,
    ),
)
def find_training_state(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    roles_by_place = _find_training_roles(checkpoint)
    training_places = _find_places_within(checkpoint, roles_by_place)
    states = [
        state for state in checkpoint.states if state.at not in training_places and state.tensors
    ]
    model_states = [state for state in states if state.role != "tensors"] or states
    if not roles_by_place or not model_states:
        return
    total_nbytes = sum(
        _sum_nbytes(state) for state in checkpoint.states if state.at in training_places
    )
    yield hit(
        next(iter(roles_by_place)),
        what=", ".join(dict.fromkeys(roles_by_place.values())),
        nbytes=f", {total_nbytes:,} bytes of tensors" if total_nbytes else "",
        remedy=_advise_release(checkpoint, model_states),
        places=list(roles_by_place),
    )


def _advise_release(checkpoint: Checkpoint, model_states: list[StateDict]) -> str:
    """Return the command or the code that writes the model alone."""
    state = find_loaded_state(checkpoint)
    state = state if state in model_states else model_states[0]
    others = join_limited([s.at for s in model_states if s is not state], _MAX_LISTED, quote_code)
    which = f" (or of {others})" if others else ""
    if not state.non_tensors and all(map(_fits_safetensors, state.tensors.values())):
        at = ("--at", state.at) if state.at else ()
        whose = f"that of `{state.at}`{which}: " if which else ""
        options = (*at, "--weights-only")
        return f"{whose}{format_convert_command(checkpoint, *options, suffix='.safetensors')}"
    if state.at.isidentifier() and state.role == "state_dict":
        name = quote_python(name_result(checkpoint))
        return f"torch.save(checkpoint[{quote_python(state.at)}], {name})"
    return f"save the state_dict alone, which is at `{state.at or '.'}`{which}"


def _fits_safetensors(tensor: TensorInfo) -> bool:
    is_dense = tensor.layout in {"strided", "chunked"} and not tensor.wrapper
    return is_dense and tensor.dtype in SAFETENSORS_DTYPES and not tensor.is_on_meta


def _find_training_roles(checkpoint: Checkpoint) -> dict[str, str]:
    """Return place -> kind of training state: of optimizers, and of top-level names."""
    model_places = {
        place
        for state in checkpoint.states
        if state.role in {"state_dict", "module"}
        for place in _iter_places_above(state.at)
    }
    optimizer_roles = {
        next((p for p in _iter_places_above(state.at) if p not in model_places), state.at): (
            "optimizer"
        )
        for state in _iter_optimizer_states(checkpoint)
        if state.at
    }
    top_names = dict.fromkeys(
        at.split(".", 1)[0]
        for at in (
            *(state.at for state in checkpoint.states),
            *(entry.at for entry in checkpoint.entries if not _is_empty(entry)),
        )
    )
    known_roles = {name: role for role, names in _TRAINING_STATE_NAMES.items() for name in names}
    entry_roles = {
        top_name: known_roles[top_name] for top_name in top_names if top_name in known_roles
    }
    return optimizer_roles | entry_roles


def _is_empty(entry: PlainEntry) -> bool:
    """Whether a training script left the entry empty: None, or no elements."""
    return entry.text == "None" or entry.value in ([], {})


def _iter_places_above(place: str) -> Iterator[str]:
    """Yield the first places on the way to `place`, the top-level name first, and `place` last."""
    steps = place.split(".", _MAX_LEVELS)
    return (".".join(steps[: count + 1]) for count in range(len(steps)))


def _iter_optimizer_states(checkpoint: Checkpoint) -> Iterator[StateDict]:
    return (state for state in checkpoint.states if state.role == "optimizer")


def _find_places_within(checkpoint: Checkpoint, roles_by_place: dict[str, str]) -> set[str]:
    return {
        state.at
        for state in checkpoint.states
        if any(place in roles_by_place for place in _iter_places_above(state.at))
    }


def _sum_nbytes(state: StateDict) -> int:
    return sum(tensor.nbytes for tensor in state.tensors.values())


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
            "Save it again when its weights are on a real device: a migration cannot restore data"
            " that is not in the file."
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
            )


_CODE_CONTAINERS: Final = {Container.TORCHSCRIPT, Container.TORCH_EXPORT}
"""Containers that are useful without a tensor: they contain code."""


@check_other_subject(
    Checkpoint,
    "CK327",
    summary="the file has no values",
    detail="{reason}",
    fix="Save module.state_dict() of the module that was trained. If none is meant: ignore CK327.",
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
    )


@check_other_subject(
    CheckpointStatistics,
    "CK327",
    summary="the file has no values",
    detail="all of its {count} floating-point tensors are zeros, and its records have no checksum:"
    " torch.save leaves space for them so, under torch.serialization.skip_data() and in"
    " FakeTensorMode",
    fix="Write the values into the file as well, or save it again without skip_data().",
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
        yield hit("", count=len(is_zero))


@check(
    Checkpoint,
    Rule(
        code=PARTITIONED_PARAMETERS,
        name="partitioned-parameters",
        level=Level.ERROR,
        summary="{count} of {total} parameters have no elements (shape [0]), {first} among them",
        detail="they are partitioned over the ranks of a run, and this file has placeholders",
        why=(
            "DeepSpeed's ZeRO-3 and FSDP leave an empty tensor of shape [0] in place of a "
            "parameter that is partitioned over the ranks. A state_dict() that is saved without "
            "gathering them first contains only these placeholders."
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
                total=len(list_float_weights(state)),
                first=join_limited(keys, _MAX_LISTED, quote_code),
                at=state.at,
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


_ATTRIBUTE_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
"""Path that is a sequence of attributes, which code can name as it is."""
LOST_OBJECT_STATE: Final = "CK336"
"""Code of findings about values of an optimizer, scheduler, ... that a load does not restore."""


@check(
    ObjectChanges,
    Rule(
        code=LOST_OBJECT_STATE,
        name="object-state-not-restored",
        level=Level.WARNING,
        summary=(
            "`{key}` of {name} changed{change} {since}, and load_state_dict() does not restore it"
        ),
        detail="a resumed run continues with a different value",
        why=(
            "Optimizers, schedulers, samplers and averages are saved by their own state_dict(). "
            "What is not in it is lost when training resumes: it continues, but not as an "
            "uninterrupted run would."
        ),
        fix=("In {name}: {code}. If {name} is a module, register it as a buffer instead."),
        general_advice=(
            'In NAME: state["KEY"] = self.KEY in state_dict(), and self.KEY = state["KEY"] '
            "in load_state_dict(). If NAME is a module, register it as a buffer instead."
        ),
        example=(
            "class Sampler:\n"
            "    def __init__(self):\n"
            "        self.epoch, self.position = 0, 0\n"
            "\n"
            "    def state_dict(self):\n"
            '        return {"epoch": self.epoch}  # and not the position'
        ),
    ),
)
def find_lost_object_state(changes: ObjectChanges) -> Iterator[RuleHit]:
    for change in changes.lost:
        text = f" from {change.before} to {change.after}" if change.before else ""
        is_opaque = change.before == change.after
        yield hit(
            change.path,
            None if change.is_plain_number else Level.ERROR,
            name=changes.name,
            since=changes.since,
            code=_format_restore_code(change.path),
            change="" if is_opaque else text,
        )


def _format_restore_code(path: str) -> str:
    """Return the line that saves a value and the line that restores it."""
    name = quote_python(path)
    if not _ATTRIBUTE_PATH.fullmatch(path):
        return f"return {path} from state_dict(), and set it in load_state_dict()"
    return (
        f"state[{name}] = self.{path} in state_dict(), and self.{path} = state[{name}] in"
        " load_state_dict()"
    )


@check(
    ObjectChanges,
    Rule(
        code="CK337",
        name="object-state-does-not-load",
        level=Level.ERROR,
        summary="{key} does not load its own state_dict(): {error}",
        why=(
            "A checkpoint of it can be written, and training cannot be resumed from it: "
            "load_state_dict() raises."
        ),
        fix="Have load_state_dict() of {key} take what its state_dict() returns.",
        example=(
            "class Average:\n"
            "    def state_dict(self):\n"
            '        return {"shadow": self.shadow}\n'
            "\n"
            "    def load_state_dict(self, state):\n"
            '        self.shadow = state["average"]  # KeyError'
        ),
    ),
)
def find_unloadable_object_state(changes: ObjectChanges) -> Iterator[RuleHit]:
    if changes.load_error:
        yield hit(changes.name, error=changes.load_error)
