"""Checkpoint, ModuleDiff -> hits: what is in the place of tensors or shards (CK315-CK317)."""

from collections.abc import Iterator

from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Checkpoint, IssueKind, Kind
from ckptool.rules.fix_commands import format_migrate_command
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    Checkpoint,
    Rule(
        code="CK315",
        name="opaque-weights",
        level=Level.WARNING,
        summary="{key} cannot be compared",
        detail="{reason}",
        why=(
            "An object of a compiled class is pickled in a form of its own: weights in it are in "
            "no report, two files with other weights look alike, and no migration takes them along."
        ),
        fix="Release the checkpoint with plain tensors, and pack them after loading.",
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.table = torch.classes.my_library.Table()\n"
            "torch.jit.script(Net()).save(path)"
        ),
        gate=Level.ERROR,
    ),
)
def find_opaque_weights(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for part in checkpoint.opaque:
        yield hit(part.what, reason=part.reason)


@check(
    Checkpoint,
    Rule(
        code="CK317",
        name="index-passed-over",
        level=Level.WARNING,
        summary="from_pretrained loads `{loaded}`, and not the shards of `{key}` beside it",
        why=(
            "transformers takes the whole file where there is one, whatever the index says: with "
            "one of the two left over from an earlier save, it loads other weights than were meant."
        ),
        fix="Remove the one that is not meant.",
        example=(
            'model.save_pretrained("release")  # model.safetensors\n'
            'model.save_pretrained("release", max_shard_size="1GB")  # shards and their index'
        ),
        gate=Level.ERROR,
    ),
)
def find_passed_over_indexes(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.PASSED_OVER:
            yield hit(issue.key, **issue.facts)


@check(
    ModuleDiff,
    Rule(
        code="CK316",
        name="not-a-tensor",
        level=Level.ERROR,
        summary="`{key}` is a tensor of the module, and the file has {what} there",
        why=(
            "load_state_dict copies tensors only: it raises on anything else under a key of its "
            "own, with strict=False as well."
        ),
        fix="{remedy}",
        example=(
            'state = {"weight": torch.ones(2, 2), "bias": np.zeros(2)}\n'
            "nn.Linear(2, 2).load_state_dict(state)"
        ),
        explains_key=True,
    ),
)
def find_mistyped_keys(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key, description in diff.mistyped_keys.items():
        tensor = diff.state.tensors.get(key)
        yield hit(
            key,
            what=description,
            remedy=(
                f"Have the arrays written as tensors: {format_migrate_command(diff)}"
                if tensor is not None and tensor.kind is Kind.ARRAY
                else "Save module.state_dict(), whose values are tensors; an uninitialized "
                "parameter gets its shape by a forward pass before saving."
            ),
        )
