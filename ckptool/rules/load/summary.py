"""ModuleDiff -> hits: problems of the load as a whole (CK210, CK212, CK222-CK226, CK304)."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.compare.load_outcome import LoadStepKind
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.quantization.layers import find_state_quantization
from ckptool.compare.states import is_rank_part
from ckptool.model import (
    Checkpoint,
    Container,
    IssueKind,
    Kind,
    Safety,
    natural_sort_key,
)
from ckptool.phrases import join_limited, quote_python
from ckptool.rules.fixes.commands import (
    DONOR_SOURCE,
    advise_conversion,
    advise_ignoring,
    format_inject_command,
    format_migrate_command,
)
from ckptool.rules.fixes.state_code import format_place, format_save_code
from ckptool.rules.load.versions import label_module
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_DRAWN_REMEDY: Final = (
    "Initialise it in the constructor only, and not in the loading code (a hook or an override)."
)
_KEPT_REMEDY: Final = (
    "Raise an error in the override for the missing and unexpected keys that "
    "super().load_state_dict() returns."
)
MIN_COVERAGE: Final = 0.5
"""Share of the parameters' elements (0 to 1); CK210 fires if `strict=False` would load less."""


@check(
    ModuleDiff,
    Rule(
        code="CK210",
        name="coverage-too-low",
        level=Level.ERROR,
        summary="only {percent}% of the parameters' elements would load",
        detail="{loaded} of {total} keys match",
        why=(
            "strict=False accepts this and leaves the other parameters randomly initialised. 0% "
            "means that nothing matched: a prefix, the wrong key path in the file, or a "
            "different model."
        ),
        fix=(
            "Fix the other findings. What a migration would change, and ask: {command}."
            f"{advise_ignoring('CK210')}"
        ),
        general_command="ckptool migrate FILE -m PACKAGE.MODULE:NAME --dry-run",
        example=(
            'state = {"model." + key: t for key, t in model.state_dict().items()}\n'
            "model.load_state_dict(state, strict=False)  # loads nothing"
        ),
    ),
)
def find_low_coverage(diff: ModuleDiff) -> Iterator[RuleHit]:
    if diff.part is None and diff.quantization is None and diff.coverage < MIN_COVERAGE:
        yield hit(
            diff.state.at,
            percent=f"{100 * diff.coverage:.0f}",
            loaded=len(diff.matched_keys),
            total=len(diff.module.saved_tensors),
            command=f"{format_migrate_command(diff)} --dry-run",
        )


@check(
    ModuleDiff,
    Rule(
        code="CK212",
        name="wrong-nesting-level",
        level=Level.ERROR,
        summary="the file has a better match at `{better}` than at `{at}`, which was given",
        why=(
            "Training scripts often save the state_dict inside another dict. Loading the outer "
            "dict with strict=False loads nothing, silently."
        ),
        fix="--at {better:sh}, and in code: load_state_dict({code})",
        general_advice='--at BETTER, and in code: load_state_dict(checkpoint["BETTER"])',
        example=(
            'checkpoint = {"epoch": 3, "state_dict": model.state_dict()}\n'
            "model.load_state_dict(checkpoint, strict=False)"
        ),
    ),
)
def find_wrong_nesting(diff: ModuleDiff) -> Iterator[RuleHit]:
    if diff.better_state is not None:
        at = diff.better_state.at
        code = "checkpoint" + "".join(f"[{quote_python(s)}]" for s in at.split(".") if s)
        yield hit(diff.state.at, at=diff.state.at or ".", better=at or ".", code=code)


@check(
    ModuleDiff,
    Rule(
        code="CK304",
        name="pickled-attribute-drift",
        level=Level.WARNING,
        summary="{whose} was pickled as {owner} without {names}, which the current class sets",
        why=(
            "A pickled module has the attributes it was saved with. Newer code of its class "
            "reads attributes that are missing, and fails in the middle of a forward pass."
        ),
        fix=(
            "Load the state_dict into a module built by the current code instead of unpickling "
            "the module.{conversion}"
        ),
        example=(
            "torch.save(nn.GELU(), path)  # by a torch whose GELU had no `approximate`\n"
            "nn.GELU().load_state_dict(torch.load(path, weights_only=False).state_dict())"
        ),
    ),
)
def find_attribute_drift(diff: ModuleDiff) -> Iterator[RuleHit]:
    if diff.checkpoint.container is Container.TORCHSCRIPT:  # it contains its compiled classes
        return
    for prefix, pickled_module in diff.state.modules.items():
        module_class = diff.module.modules.get(prefix)
        if module_class is not None and module_class.name == pickled_module.name:
            missing_attributes = sorted(
                module_class.attributes - pickled_module.attributes, key=natural_sort_key
            )
            if missing_attributes:
                yield hit(
                    prefix,
                    whose=label_module(prefix),
                    owner=module_class.name,
                    names=", ".join(missing_attributes),
                    conversion=advise_conversion(diff.checkpoint, "write it to a file"),
                )


@check(
    ModuleDiff,
    Rule(
        code="CK222",
        name="loading-code-loses-state",
        level=Level.ERROR,
        summary="`{key}` {state}: the module's own loading code {what}",
        detail="load_state_dict(strict=True) does not raise",
        why=(
            "An override that calls super().load_state_dict(strict=False), or skips keys whose "
            "shape does not match, returns without an error. The tensor keeps its initial value. "
            "Code that makes room for more rows leaves initial values in them."
        ),
        fix=f"{{remedy}}{advise_ignoring('CK222')}",
        general_advice=(
            "Let the loading code raise an error for what it does not load, and keep what it loads."
            f"{advise_ignoring('CK222')}"
        ),
        example=(
            "class Net(nn.Linear):\n"
            "    def load_state_dict(self, state_dict, strict=True):\n"
            "        return super().load_state_dict(state_dict, strict=False)\n"
            "\n"
            "\n"
            'Net(2, 2).load_state_dict({"weight": torch.ones(2, 2)})  # bias stays as it was'
        ),
    ),
)
def find_lost_keys(diff: ModuleDiff) -> Iterator[RuleHit]:
    keys = [step.key for step in diff.load_steps if step.kind is LoadStepKind.LOST]
    missing_keys = [key for key in keys if key not in diff.state.tensors]
    command = format_inject_command(diff, missing_keys, DONOR_SOURCE) if missing_keys else ""
    for step in diff.load_steps:
        if step.kind is LoadStepKind.LOST:
            module_tensor = diff.module.saved_tensors[step.key]
            is_rebuilt = module_tensor.kind is Kind.BUFFER and module_tensor.is_recomputable
            is_in_file = step.key in diff.state.tensors
            what = "ignores the file's tensor" if is_in_file else "does not report it missing"
            is_drawn = step.kept is not None and step.kept.is_drawn
            remedy = _DRAWN_REMEDY if is_drawn else _KEPT_REMEDY
            if not is_in_file:
                remedy += f" To take it from another checkpoint: {command}."
            state = "is initialised again" if is_drawn else "keeps its initial value"
            level = Level.NOTE if is_rebuilt else None
            yield hit(step.key, level, state=state, what=what, remedy=remedy)
        elif step.kind is LoadStepKind.PARTIAL and step.kept is not None:
            what = "computes the others from the file"
            verb = "has new random values" if step.kept.is_drawn else "keeps initial values"
            state = f"{verb} in {step.kept.count:,} of {step.kept.numel:,} elements"
            remedy = _DRAWN_REMEDY if step.kept.is_drawn else _KEPT_REMEDY
            yield hit(step.key, Level.WARNING, state=state, what=what, remedy=remedy)


@check(
    ModuleDiff,
    Rule(
        code="CK223",
        name="load-refused",
        level=Level.ERROR,
        summary="{attempt} raises",
        detail="{error}",
        why=(
            "Loading is code: a hook or an override may refuse a file because of its version, a "
            "key that it renamed, or a key that it looks up and state_dict() does not write; and "
            "a meta, sparse or quantised tensor cannot be copied into a dense parameter."
        ),
        fix="{remedy}",
        general_advice=(
            "Load it with the version of the code that wrote it, and save it again from there; "
            "convert tensors of another layout, as with to_dense()."
        ),
        example=(
            "class Net(nn.Linear):\n"
            "    def _load_from_state_dict(self, state_dict, prefix, *args):\n"
            '        self.scale = state_dict[prefix + "scale"]  # that state_dict() never wrote\n'
            "\n"
            "\n"
            "Net(2, 2).load_state_dict(Net(2, 2).state_dict())"
        ),
    ),
)
def find_refused_load(diff: ModuleDiff) -> Iterator[RuleHit]:
    if _is_refused_by_loader(diff):
        call = diff.loading_info.loader if diff.loading_info is not None else "load_state_dict()"
        # A framework that raises says nothing of the keys.
        premise = "keys and shapes match, and " if diff.loading_info is None else ""
        error = _get_load_error(diff)
        remedy = _advise_unreached_folder(diff.checkpoint) or _advise_refused_load(diff)
        yield hit("", attempt=f"{premise}{call}", error=error, remedy=remedy)


def _advise_unreached_folder(checkpoint: Checkpoint) -> str:
    """Return how a framework finds the weights of a folder, "" if it does."""
    kinds = {issue.kind for issue in checkpoint.faults}
    if kinds.isdisjoint({IssueKind.UNREACHED, IssueKind.NESTED}):
        return ""
    if IssueKind.MISSING_SHARD in kinds:
        return "Download the folder again, or write it again: model.save_pretrained(folder)."
    return "Write the weights as it looks for them: model.save_pretrained(folder)."


def _advise_refused_load(diff: ModuleDiff) -> str:
    """Return what makes the load succeed, by what torch refuses."""
    if any(tensor.is_on_meta for tensor in diff.state.tensors.values()):
        code = format_save_code(diff.checkpoint, diff.state.at)
        return f"Save it again in a script whose model is on a real device: {code}"
    if any(map(is_rank_part, diff.state.tensors.values())):
        return "Gather the shards first (CK604)."
    if layers := find_state_quantization(diff.state).layers:
        return f"load_state_dict() does not fill such layers: {layers[0].scheme.remedy}."
    if diff.module.own_load_error:
        return "The module does not load its own state_dict() either: fix that first (CK114)."
    if conversions := _list_layout_conversions(diff):
        shown = join_limited(conversions, _MAX_CONVERSIONS, more=", and {} more in the same way")
        return f"Bring the file's tensors to the module's layout: {shown}"
    copy_advice = "" if diff.loading_info is not None else _COPY_ADVICE
    return (
        "Load it with the version of the code that wrote it, and save it again from there."
        f"{copy_advice}"
    )


_COPY_ADVICE: Final = (
    " If only a check of the module is in the way, copy the tensors by their keys, and save the"
    " module again: for key, tensor in module.state_dict().items(): tensor.copy_(state_dict[key])"
)
"""Code that fills a module without its loading code: keys and shapes match where it is advised."""


_MAX_CONVERSIONS: Final = 3
_LAYOUT_METHODS: Final = {
    "strided": "to_dense",
    "sparse_coo": "to_sparse",
    "sparse_csr": "to_sparse_csr",
    "sparse_csc": "to_sparse_csc",
}
"""Layout -> method of torch.Tensor that gives it, without arguments."""


def _list_layout_conversions(diff: ModuleDiff) -> list[str]:
    """Return an assignment, as source text, for each tensor of another layout than the module's."""
    return [
        f"state_dict[{quote_python(key)}] = state_dict[{quote_python(key)}].{method}()"
        for key, tensor in diff.state.tensors.items()
        if (module_tensor := diff.module.saved_tensors.get(key)) is not None
        and module_tensor.tensor.layout != tensor.layout
        and {module_tensor.tensor.layout, tensor.layout} <= _LAYOUT_METHODS.keys()
        and (method := _LAYOUT_METHODS[module_tensor.tensor.layout])
    ]


def _is_refused_by_loader(diff: ModuleDiff) -> bool:
    return diff.load_outcome is not None and diff.is_refused and not diff.checkpoint.load_refusal


def _get_load_error(diff: ModuleDiff) -> str:
    return diff.load_outcome.error if diff.load_outcome is not None else ""


@check(
    ModuleDiff,
    Rule(
        code="CK226",
        name="load-not-checked",
        level=Level.WARNING,
        summary="keys and shapes match; not checked whether it loads",
        detail="{what}: {reason}",
        why=(
            "Whether a tensor subclass can be copied into a parameter, and what a module's "
            "loading code does, depends on their own code, which could not be run here."
        ),
        fix="{remedy}",
        general_advice=(
            "Load it in the code that uses it; a policy with strict = true fails in the meantime."
        ),
        example=(
            "class Scaled(torch.Tensor): ...  # a subclass that torch.load does not allow\n"
            "\n"
            "\n"
            'torch.save({"weight": torch.ones(2, 2).as_subclass(Scaled)}, path)'
        ),
    ),
)
def find_unchecked_load(diff: ModuleDiff) -> Iterator[RuleHit]:
    unchecked = diff.unchecked_load
    if unchecked is not None and diff.is_strict:
        remedy = _advise_unchecked_load(diff)
        yield hit("", what=unchecked.what, reason=unchecked.reason, remedy=remedy)


_CLASS_NAME: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
"""Path of a class that code can import."""


def _advise_unchecked_load(diff: ModuleDiff) -> str:
    """Return how to load the file where its tensor subclasses can be imported."""
    wrappers = {tensor.wrapper for tensor in diff.state.tensors.values() if tensor.wrapper}
    waits = "a policy with strict = true fails in the meantime"
    is_dangerous = any(use.safety is Safety.DANGEROUS for use in diff.checkpoint.globals)
    if is_dangerous or not wrappers or not all(map(_CLASS_NAME.fullmatch, wrappers)):
        return f"Load it in the code that uses it; {waits}."
    modules = ", ".join(sorted({wrapper.rpartition(".")[0] for wrapper in wrappers}))
    code = (
        f"import torch, {modules}; "
        f"torch.serialization.add_safe_globals([{', '.join(sorted(wrappers))}]); "
        f"checkpoint = torch.load({quote_python(str(diff.checkpoint.path))}); "
        f"module.load_state_dict({format_place(diff.state.at)})"
    )
    return f"Load it in the code that uses it ({waits}), if you trust its classes: {code}"
