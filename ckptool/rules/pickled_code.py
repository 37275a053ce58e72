"""Checkpoint -> hits: what its pickles import: globals, modules, classes (CK301-CK303, CK326)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckptool.model import (
    Checkpoint,
    Container,
    GlobalUse,
    Safety,
    StateDict,
    join_key,
    natural_sort_key,
)
from ckptool.phrases import quote_python
from ckptool.rules.fixes.commands import advise_conversion, format_convert_command
from ckptool.rules.registry import CONVERT, Level, Rule, RuleHit, check, fill_template, hit

_GLOBAL_ADVICE: Final = {
    Safety.DANGEROUS: "Do not load this file with weights_only=False unless you trust its author.",
    Safety.UNKNOWN: (
        "If you know what it does, allow it by its exact name: with "
        "torch.serialization.add_safe_globals, and in a gate with `globals` of the policy."
    ),
}


@check(
    Checkpoint,
    Rule(
        code="CK301",
        name="unsafe-pickle-global",
        level=Level.ERROR,
        summary="the pickle references {key}{where}{times}",
        detail="{safety}",
        why=(
            "Unpickling imports and calls the globals that a file references: that is how a "
            "checkpoint runs code. torch.load(weights_only=True) refuses this global, and so "
            "does a gate, unless the policy lists that exact name in `globals`. ckptool never "
            "imports it."
        ),
        fix="{advice}",
        general_advice=(
            "Save it again with plain types. If you know what a global does, allow it by "
            "its exact name: torch.serialization.add_safe_globals, and in a gate `globals` "
            "of the policy."
        ),
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
            safety=_describe_safety(first),
            advice=_advise_global(checkpoint, first),
            at=first.at,
            count=len(uses),
        )


def _describe_safety(use: GlobalUse) -> str:
    if use.safety is not Safety.DANGEROUS:
        return "not a global that torch.load allows"
    return f"dangerous; here it looks up {use.method}" if use.method else "dangerous"


_PATH_ADVICE: Final = (
    "Save str(path) from now on. A path object of another operating system cannot be created on "
    "this one; to read it on any: torch.serialization.add_safe_globals([(pathlib.Pure{name}, "
    "{key:py})])"
)
_PICKLED_TENSOR: Final = "torch.storage._load_from_bytes"
_UNREADABLE_PICKLE_ADVICE: Final = (
    "pickle.dump writes tensors this way; torch.save does not. If you trust its author: read it "
    "with pickle.load, and save the result with torch.save."
)
_ADVICE_BY_NAME: Final = {
    _PICKLED_TENSOR: (
        "pickle.dump writes tensors this way; torch.save does not. To write them with torch.save:"
        " {command}"
    ),
    "_io.BytesIO": (
        "The file contains another file as bytes, as torchtitan's train_state does: save the "
        "values themselves, not an io.BytesIO with them."
    ),
    "argparse.Namespace": (
        "Save vars(args), a plain dict, from now on. To read this one:"
        " torch.serialization.add_safe_globals([argparse.Namespace])"
    ),
    **{
        f"{module}.{name}": _PATH_ADVICE
        for module in ("pathlib", "pathlib._local")
        for name in ("WindowsPath", "PosixPath")
    },
}
"""Remedies for names that training code writes, as format strings."""
_SHARDED_TENSOR_CALLS: Final = frozenset({"builtins.getattr", "<computed>.<call>"})
_SHARDED_TENSOR_ADVICE: Final = (
    "torch.save of a ShardedTensor writes it: save a full state_dict, or with"
    " torch.distributed.checkpoint."
)
_ADVICE_BY_PACKAGE: Final = {
    "numpy": (
        "Save numbers as value.item() and arrays as torch.from_numpy(array): torch.load allows "
        "both, but no NumPy globals."
    ),
    "dill": (
        "dill wrote it, which pickles code as well. If you trust its author: torch.load(path, "
        "pickle_module=dill, weights_only=False), and save its state_dict() with torch.save."
    ),
}


def _advise_global(checkpoint: Checkpoint, use: GlobalUse) -> str:
    """Return what to do about a name: by what writes it, if that is known, else by its danger."""
    if use.qualified_name in _SHARDED_TENSOR_CALLS and _has_sharded_tensors(checkpoint):
        return _SHARDED_TENSOR_ADVICE
    if use.method:
        return _advise_method(checkpoint, use)
    advice = _ADVICE_BY_NAME.get(use.qualified_name)
    if checkpoint.damage and use.qualified_name == _PICKLED_TENSOR:
        advice = _UNREADABLE_PICKLE_ADVICE
    package = use.module.partition(".")[0]
    if advice is None and (use.safety is not Safety.DANGEROUS or package == "dill"):
        advice = _ADVICE_BY_PACKAGE.get(package)
    if advice is None:
        conversion = advise_conversion(checkpoint, "write a file without it")
        return f"{_GLOBAL_ADVICE[use.safety]}{conversion}"
    return fill_template(
        advice,
        use.qualified_name,
        {"name": use.name, "command": format_convert_command(checkpoint, suffix=".pth")},
    )


def _has_sharded_tensors(checkpoint: Checkpoint) -> bool:
    return any(
        "ShardedTensor" in tensor.wrapper
        for state in checkpoint.states
        for tensor in state.tensors.values()
    )


def _advise_method(checkpoint: Checkpoint, use: GlobalUse) -> str:
    """Return the remedy for a bound method in the file, which brings its whole object along."""
    method, _, owner = use.method.partition(" of ")
    place = "".join(f"[{quote_python(step)}]" for step in use.at.split(".") if step)
    if owner.startswith("the class "):
        return (
            f"{method} of {owner} was saved: with Python 3.11.0 to 3.11.3, a member of an enum is"
            " saved by getattr. Save its name or value before torch.save:"
            f" checkpoint{place} = checkpoint{place}.name"
        )
    if method != "`state_dict`" and place:
        return (
            f"A bound method was saved, and the whole {owner} with it. Leave it out before"
            f" torch.save: del checkpoint{place}"
        )
    missing = (
        "The parentheses are missing: save what state_dict() returns"
        if method == "`state_dict`"
        else "Save model.state_dict() instead"
    )
    at = join_key(use.at, "0")
    if not any(state.at == at and state.role == "module" for state in checkpoint.states):
        return f"{missing}. The whole {owner} was saved with its method."
    return (
        f"{missing}. The whole {owner} was saved with its method; to take the state_dict out: "
        f"{format_convert_command(checkpoint, '--at', at, '--weights-only', suffix='.safetensors')}"
    )


@check(
    Checkpoint,
    Rule(
        code="CK302",
        name="pickled-module",
        level=Level.WARNING,
        summary="a whole {owner} is pickled at {place}, not its state_dict",
        why=(
            "Loading it needs weights_only=False, its class at the same import path, and "
            "attributes that match the current code. It does contain the plain attributes that a "
            "state_dict would have lost."
        ),
        fix="Save module.state_dict().{conversion}",
        example="torch.save(model, path)  # instead of model.state_dict()",
        gate=Level.ERROR,
    ),
)
def find_pickled_modules(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container is Container.TORCHSCRIPT:  # TorchScript files contain their classes
        return
    for state in checkpoint.states:
        if state.modules:
            yield hit(
                state.at,
                owner=state.modules[""].name,
                place=_format_location(state),
                conversion=advise_conversion(checkpoint, "write that of this file"),
            )


def _format_location(state: StateDict) -> str:
    return f"`{state.at}`" if state.at else "the root"


@check(
    Checkpoint,
    Rule(
        code="CK303",
        name="pickled-class-unavailable",
        level=Level.ERROR,
        summary="the file needs {what}, which cannot be imported here",
        why=(
            "torch.load of a pickled module fails without its class: a moved package, a renamed "
            "module, a script that ran as __main__."
        ),
        fix="{advice}{conversion}",
        general_advice=(
            "Run it where the class can be imported, in the version that saved the file; or "
            "write a file that needs no class: ckptool convert FILE -o NEW"
        ),
        example=(
            "class Net(nn.Module): ...  # in a script that ran as __main__\n"
            "\n"
            "\n"
            "torch.save(Net(), path)"
        ),
    ),
)
def find_unavailable_classes(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    names = {
        pickled_module.name
        for state in checkpoint.states
        for pickled_module in state.modules.values()
        if "." in pickled_module.name  # others are of a class that the pickle itself makes
    }
    if not names or checkpoint.container is Container.TORCHSCRIPT:
        return
    from ckptool.modules.class_lookup import class_exists

    packages: dict[str, list[str]] = {}
    for qualified_name in sorted(names, key=natural_sort_key):
        module, _, name = qualified_name.rpartition(".")
        if module == "__main__" or class_exists(module, name, (Path.cwd(),)) is False:
            packages.setdefault(module.partition(".")[0], []).append(qualified_name)
    for package, class_names in packages.items():
        yield hit(
            class_names[0],
            what=_describe_classes(class_names),
            advice=_advise_import(package),
            conversion=advise_conversion(checkpoint, "write a file that needs no class"),
            classes=class_names,
        )


def _describe_classes(class_names: list[str]) -> str:
    if len(class_names) == 1:
        return f"the class {class_names[0]}"
    return (
        f"the class {class_names[0]} and {len(class_names) - 1} more of"
        f" {class_names[0].partition('.')[0]}"
    )


def _advise_import(package: str) -> str:
    if package == "__main__":
        return "Define the class in the script that loads, as the script that saved did."
    return f"Run it where {package} can be imported, in the version that saved the file."


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
            "torch.save writes and no others. A file that needs weights_only=False can run code "
            "when it is loaded, and a gate refuses it whatever globals it references."
        ),
        fix="torch.save it again with the default pickle_protocol, or: {command}",
        general_command=CONVERT,
        example="torch.save(model.state_dict(), path, pickle_protocol=4)",
        gate=Level.ERROR,
    ),
)
def find_weights_only_refusal(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    # Where load_refusal is set, torch.load opens it in neither way.
    if checkpoint.weights_only_refusal and not checkpoint.load_refusal:
        command = format_convert_command(checkpoint, suffix=".safetensors")
        yield hit("", refusal=checkpoint.weights_only_refusal, command=command)
