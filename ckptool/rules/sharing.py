"""Checkpoint, ModuleDiff, CheckpointDiff -> hits: shared storages, diverged ties (CK50x)."""

from collections.abc import Iterator

from ckptool.compare import CheckpointDiff, ModuleDiff
from ckptool.model import Checkpoint, group_by_storage, tied_keys
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit


@check(
    Checkpoint,
    Rule(
        code="CK503",
        name="shared-storage",
        level=Level.NOTE,
        message="`{key}` shares its storage with {others}: {how}",
        why="Tied weights come apart when they are copied one by one, and safetensors refuses "
        "tensors that share memory.",
        fix="Keep the tie in the module; for safetensors save one of the names and tie again "
        "after loading.",
        example="head.weight = embedding.weight\n"
        'torch.save({"emb": embedding.weight, "head": head.weight}, path)',
    ),
)
def find_shared_storages(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        for group in group_by_storage(state.tensors.values()):
            keys = [tensor.key for tensor in group]
            is_tied = tied_keys(group) == (tuple(keys),)
            yield hit(
                keys[0],
                others=", ".join(f"`{key}`" for key in keys[1:4]) + (" ..." if keys[4:] else ""),
                how="they are one tensor (tied)" if is_tied else "they are views of it",
                keys=keys,
            )


@check(
    ModuleDiff,
    Rule(
        code="CK502",
        name="tied-diverged",
        level=Level.ERROR,
        message="`{key}` and `{other}` are one tensor (tied), and have different values here",
        why="Loading writes both values into one tensor: the later one wins, and the other is lost "
        "without a word.",
        fix='Decide which one was trained, and save both from it: state_dict["{other}"] = '
        'state_dict["{key}"], or the other way round.',
        example="model.head.weight = model.emb.weight\n"
        'state = {"emb.weight": torch.zeros(3, 2), "head.weight": torch.ones(3, 2)}\n'
        "model.load_state_dict(state)  # emb.weight is all ones now",
    ),
)
def find_diverged_ties(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key, other_key in diff.diverged_ties:
        yield hit(key, other=other_key)


@check_other_subject(
    CheckpointDiff,
    "CK502",
    message="`{key}` and `{other}` are one tensor (tied) in the old file, and have different "
    "values in the new one",
)
def find_ties_diverged_in_new(diff: CheckpointDiff) -> Iterator[RuleHit]:
    for key, other_key in diff.diverged_ties:
        yield hit(key, other=other_key)
