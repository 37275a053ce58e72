"""Checkpoint, ModuleDiff, CheckpointDiff -> hits: shared storages, diverged ties (CK50x)."""

from collections.abc import Iterator

from ckptool.compare import Loading, Revision
from ckptool.model import Checkpoint, sharing, ties
from ckptool.rules.registry import Hit, Level, Rule, also, check, hit


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
def shared_storage(checkpoint: Checkpoint) -> Iterator[Hit]:
    for state in checkpoint.states:
        for group in sharing(state.tensors.values()):
            keys = [t.key for t in group]
            whole = ties(group) == (tuple(keys),)
            yield hit(
                keys[0],
                others=", ".join(f"`{k}`" for k in keys[1:4]) + (" ..." if keys[4:] else ""),
                how="they are one tensor (tied)" if whole else "they are views of it",
                keys=keys,
            )


@check(
    Loading,
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
def tied_diverged(loading: Loading) -> Iterator[Hit]:
    for key, other in loading.diverged:
        yield hit(key, other=other)


@also(
    Revision,
    "CK502",
    message="`{key}` and `{other}` are one tensor (tied) in the old file, and have different "
    "values in the new one",
)
def ties_diverged(revision: Revision) -> Iterator[Hit]:
    for key, other in revision.diverged:
        yield hit(key, other=other)
