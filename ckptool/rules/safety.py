"""Checkpoint -> hits: what torch.load runs or refuses (CK301, CK313, CK314, CK326)."""

import shlex
from collections.abc import Iterator
from typing import Final

from ckptool.model import Checkpoint, GlobalUse, Safety
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_GLOBAL_ADVICE: Final = {
    Safety.DANGEROUS: "Do not load this file with weights_only=False; ask who made it.",
    Safety.UNKNOWN: (
        "Save it again with plain types. If you know what a name does, allow it by name: with "
        "torch.serialization.add_safe_globals, and in a gate with `globals` of the policy."
    ),
}


@check(
    Checkpoint,
    Rule(
        code="CK301",
        name="unsafe-pickle-global",
        level=Level.ERROR,
        summary="the pickle names {key}{where}{times}",
        detail="{safety}",
        why=(
            "Unpickling imports and calls what the file names: that is how a checkpoint runs "
            "code. torch.load(weights_only=True) refuses this name, and so does a gate, unless the "
            "policy has that very name in `globals`. ckptool never imports it."
        ),
        fix="{advice}",
        example='torch.save({"w": torch.ones(2), "args": argparse.Namespace(lr=0.1)}, path)',
        gate=Level.ERROR,
        is_accepted_by_name=True,
    ),
)
def find_unsafe_globals(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    uses_by_name: dict[str, list[GlobalUse]] = {}
    for use in checkpoint.globals:
        if use.safety is not Safety.SAFE:
            uses_by_name.setdefault(use.qualified_name, []).append(use)
    for name, uses in uses_by_name.items():
        first = uses[0]
        is_dangerous = first.safety is Safety.DANGEROUS
        yield hit(
            name,
            None if is_dangerous else Level.WARNING,
            module=first.module,
            name=first.name,
            where=f" at `{first.at}`" if first.at else "",
            times=f" and in {len(uses) - 1} more places" if len(uses) > 1 else "",
            safety=(
                "dangerous" if is_dangerous else "not on the list of names that torch.load allows"
            ),
            advice=_GLOBAL_ADVICE[first.safety],
            at=first.at,
            count=len(uses),
        )


@check(
    Checkpoint,
    Rule(
        code="CK313",
        name="archive-refused",
        level=Level.ERROR,
        summary="torch.load refuses the archive",
        detail="{refusal}",
        why=(
            "A .pth file is a zip archive with all records in one folder. Unpacked and packed again"
            " by hand, or by a browser or an archiver, it may have no such folder, or files beside"
            " it."
        ),
        fix="ckptool migrate {path} -o FILE.pth writes an archive that torch.load opens.",
        example=(
            'with zipfile.ZipFile(path, "w") as archive:\n'
            '    for file in unpacked.rglob("*"):\n'
            "        archive.write(file, file.relative_to(unpacked))  # without the folder"
        ),
    ),
)
def find_archive_refusal(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.load_refusal:
        yield hit("", refusal=checkpoint.load_refusal, path=shlex.quote(str(checkpoint.path)))


@check(
    Checkpoint,
    Rule(
        code="CK314",
        name="unread-part",
        level=Level.NOTE,
        summary="{key} was not looked into",
        detail="{reason}",
        why=(
            "What nobody looked at can hold a pickle that whoever loads or unpacks it runs. "
            "A gate does not pass what it did not read."
        ),
        fix="Save the checkpoint without it, or release it as a file of its own.",
        example=(
            "buffer = io.BytesIO()\ntorch.save(model.state_dict(), buffer)\n"
            'torch.save({"w": torch.ones(2), "teacher": buffer.getvalue()}, path)'
        ),
        gate=Level.ERROR,
    ),
)
def find_unread_parts(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for part in checkpoint.unread:
        yield hit(part.what, reason=part.reason)


@check(
    Checkpoint,
    Rule(
        code="CK326",
        name="weights-only-refused",
        level=Level.WARNING,
        summary="torch.load refuses the pickle unless weights_only=False",
        detail="{refusal}",
        why=(
            "torch.load(weights_only=True), the default since torch 2.6, runs the opcodes that "
            "torch.save writes and no others. A file that needs weights_only=False may run code "
            "wherever it is loaded so, and a gate refuses it whatever names it holds."
        ),
        fix="ckptool migrate {path} -o FILE.safetensors, or torch.save it again with the default "
        "pickle_protocol.",
        example="torch.save(model.state_dict(), path, pickle_protocol=4)",
        gate=Level.ERROR,
    ),
)
def find_weights_only_refusal(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.weights_only_refusal:
        path = shlex.quote(str(checkpoint.path))
        yield hit("", refusal=checkpoint.weights_only_refusal, path=path)
