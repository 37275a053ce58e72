"""SaveSite, ObjectSummary -> hits: what the saves of a traced run left out (CK330-CK333)."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.phrases import join_limited, pluralize, quote_code
from ckptool.rules.fixes.run_fixes import format_attribute_fix, name_command_file
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.rules.runs.loads import describe_kind
from ckptool.tracing.merge import ObjectSummary, SaveSite
from ckptool.tracing.records import SavedModule, TrainingObject, UnsavedValue

_MAX_LISTED: Final = 3
_RESUME_KINDS: Final = frozenset({"optimizer", "LR scheduler", "gradient scaler"})

_OBJECT_NAMES: Final = {
    "LR scheduler": "scheduler",
    "gradient scaler": "scaler",
    "module": "model",
    "module copy": "averaged_model",
}
"""Kind of an object -> what scripts usually call it; others by the last word of their kind."""
_GENERATOR: Final = "random generator"
_OBJECT_TEXTS: Final = {
    "module": "the trained module",
    "module copy": "the copy, changed since, of the module",
    "object": "the object",
}


@check(
    SaveSite,
    Rule(
        code="CK330",
        name="changed-state-not-saved",
        level=Level.ERROR,
        summary="`{key}` of {owner} changed since it was built, and is not in {target}",
        detail="it is {what}, {change}; {saver} wrote the state_dict{at}",
        why=(
            "A new process builds the module with the value of the constructor, and the "
            "state_dict does not change it: the model that is loaded is not the one that was "
            "saved, though all keys match."
        ),
        fix="{remedy}",
        general_advice="self.register_buffer(NAME, ...) instead of a plain attribute.",
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.mask = torch.ones(3)\n"
            "\n\n"
            "model = Net()\n"
            "model.mask *= 2\n"
            "torch.save(model.state_dict(), path)"
        ),
    ),
)
def find_changed_tensors_not_saved(site: SaveSite) -> Iterator[RuleHit]:
    for _, unsaved in _iter_changed(site):
        if unsaved.kind != "value":
            yield _build_change_hit(site, unsaved)


@check(
    SaveSite,
    Rule(
        code="CK331",
        name="changed-value-not-saved",
        level=Level.WARNING,
        summary="`{key}` of {owner} changed since it was built, and is not in {target}",
        detail="it is {what}, {change}; {saver} wrote the state_dict{at}",
        why=(
            "In a new process, counters and flags that are plain Python values have the "
            "constructor's values: a warm-up runs again, data-dependent set-up runs over the "
            "loaded weights."
        ),
        fix="{remedy}",
        general_advice='torch.save({"model": model.state_dict(), "steps": model.steps}, path)',
        example=("model.steps += 1  # in each training step\ntorch.save(model.state_dict(), path)"),
    ),
)
def find_changed_values_not_saved(site: SaveSite) -> Iterator[RuleHit]:
    for _, unsaved in _iter_changed(site):
        if unsaved.kind == "value":
            yield _build_change_hit(site, unsaved)


@check(
    ObjectSummary,
    Rule(
        code="CK332",
        name="training-object-not-saved",
        level=Level.WARNING,
        summary="no file of the run contains {what} {owner}{at}",
        detail="{consequence}",
        why=(
            "Training state is more than the weights: the moments of the optimizer, the step of "
            "the scheduler, the scale of the gradients, averaged weights."
        ),
        fix="{remedy}",
        general_advice="Save its state_dict() next to that of the model, and load both.",
        example=(
            "scheduler = StepLR(optimizer, 10)\n"
            'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)'
        ),
    ),
)
def find_training_objects_not_saved(summary: ObjectSummary) -> Iterator[RuleHit]:
    is_resumable = bool(summary.saved_kinds & _RESUME_KINDS)
    for item in summary.never_saved:
        is_model = item.kind not in _RESUME_KINDS | {_GENERATOR}
        if item.kind == _GENERATOR:
            yield _build_generator_hit(item, is_resumable=is_resumable)
            continue
        yield hit(
            item.owner.rpartition(".")[2],
            None if is_resumable or is_model else Level.NOTE,
            what=_OBJECT_TEXTS.get(item.kind, f"the {item.kind}"),
            owner=item.owner,
            at=f" (made at {item.where})" if item.where else "",
            where=item.where,
            defined_at=item.where,
            consequence="its state_dict() is lost when the run ends"
            if is_model or is_resumable
            else "the files contain only the weights: training cannot be resumed from them",
            remedy=_advise_saving(item, is_needed=is_resumable or is_model),
        )


def _advise_saving(item: TrainingObject, *, is_needed: bool) -> str:
    """Return the line that saves an object next to the model, and the line that loads it."""
    word = _OBJECT_NAMES.get(item.kind, item.kind.rpartition(" ")[2])
    class_name = item.owner.rpartition(".")[2]
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower() if word == "object" else word
    code = f'checkpoint["{name}"] = {name}.state_dict() before torch.save(checkpoint, path), and'
    code += f' {name}.load_state_dict(checkpoint["{name}"]) after torch.load()'
    return code if is_needed else f"For a checkpoint to resume from: {code}"


def _build_generator_hit(item: TrainingObject, *, is_resumable: bool) -> RuleHit:
    """Return the hit of a random generator that went on while the run trained."""
    return hit(
        item.name,
        None if is_resumable else Level.NOTE,
        what=f"the state of the random generator {quote_code(item.name)},",
        owner=f"a {item.owner}",
        at="",
        consequence="it went on during the run; a resumed run draws again what this one drew",
        remedy=f"Save {item.name}.{_find_state_reader(item.owner)} next to the model's "
        "state_dict(), and set it when the run is resumed",
    )


def _find_state_reader(owner: str) -> str:
    if owner.startswith("numpy.") and owner.endswith(".Generator"):
        return "bit_generator.state"
    return "get_state()" if owner.startswith(("torch.", "numpy.")) else "getstate()"


@check(
    SaveSite,
    Rule(
        code="CK333",
        name="part-of-module-saved",
        level=Level.NOTE,
        summary="{count} of {module} left out of {target}: {keys}",
        detail="{saver} wrote a mapping without them{at}",
        why="A file with a part of a state_dict loads with strict=False only, and what is missing "
        "keeps its initial value.",
        fix="Save all of it: torch.save(model.state_dict(), path); or load the rest from another "
        "file.",
        example=(
            'state = {k: v for k, v in model.state_dict().items() if "head" in k}\n'
            "torch.save(state, path)"
        ),
    ),
)
def find_partial_saves(site: SaveSite) -> Iterator[RuleHit]:
    for saved_module in site.record.modules:
        if saved_module.left_out_count and not site.record.error:
            yield hit(
                saved_module.left_out_keys[0],
                **_build_save_facts(site),
                module=saved_module.module,
                count=pluralize(saved_module.left_out_count, "key"),
                keys=join_limited(saved_module.left_out_keys, _MAX_LISTED, quote_code),
            )


def _iter_changed(site: SaveSite) -> Iterator[tuple[SavedModule, UnsavedValue]]:
    for saved_module in site.record.modules:
        for unsaved in saved_module.changed:
            yield saved_module, unsaved


def _build_change_hit(site: SaveSite, unsaved: UnsavedValue) -> RuleHit:
    change = unsaved.text
    if unsaved.old_text:
        change = f"{unsaved.old_text} when it was built, {unsaved.text} when it was saved"
    return hit(
        unsaved.path,
        Level.ERROR if unsaved.is_flag else None,
        **_build_save_facts(site),
        owner=unsaved.owner,
        what=describe_kind(unsaved),
        change=change,
        remedy=format_attribute_fix(unsaved),
        defined_at=unsaved.assigned_at,
    )


def _build_save_facts(site: SaveSite) -> dict[str, object]:
    record = site.record
    target = name_command_file(record.file) or "what was saved into memory"
    more = f" and {pluralize(site.count - 1, 'other file')}" if site.count > 1 else ""
    return {
        "target": target + more,
        "saver": record.saver,
        "at": f" at {record.where}" if record.where else "",
        "where": record.where,
    }
