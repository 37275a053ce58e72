"""Checkpoint -> hits: tensors that share storage (CK503)."""

from collections.abc import Iterator

from ckptool.model import Checkpoint, sharing, ties
from ckptool.rules.registry import Hit, Level, Rule, check, hit


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
