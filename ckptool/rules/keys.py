"""ModuleDiff -> hits: missing and unexpected keys, one by one (CK201-CK220)."""

import shlex
from collections.abc import Iterator
from typing import Final

from ckptool.compare import Loading, Missing, Revision, Unexpected
from ckptool.model import Constancy, Held, Kind
from ckptool.rules.quantisation import quantised_keys
from ckptool.rules.registry import Hit, Level, Rule, also, check, hit


def _unexplained(loading: Loading) -> Iterator[Held]:
    """Yield the missing tensors that no rename, tie or other form in the file explains."""
    found = loading.explained | quantised_keys(loading)
    for change in loading.changes:
        if isinstance(change, Missing) and change.key not in found:
            yield loading.module.held[change.key]


def _unclaimed(loading: Loading) -> Iterator[Unexpected]:
    """Yield the unexpected tensors that no rename, tie or other form in the module explains."""
    used = loading.explained | quantised_keys(loading)
    for change in loading.changes:
        if isinstance(change, Unexpected) and change.key not in used:
            yield change


def _facts(held: Held) -> dict[str, object]:
    return {
        "kind": str(held.kind),
        "owner": held.owner,
        "shape": list(held.tensor.shape),
        "dtype": held.tensor.dtype,
        "nbytes": held.tensor.nbytes,
        "constancy": str(held.constancy),
        "where": held.where,
    }


def _migrate(loading: Loading) -> str:
    """Return the `ckptool migrate` command that writes a loadable file."""
    path = shlex.quote(str(loading.checkpoint.path))
    return f"ckptool migrate {path} -o NEW -m {loading.module.target}"


def _recomputable(held: Held) -> bool:
    """Whether the constructor makes the same value every time and training does not change it."""
    return held.constancy is Constancy.CONSTANT and not held.statistic


@check(
    Loading,
    Rule(
        code="CK201",
        name="missing-parameter",
        level=Level.ERROR,
        message="`{key}`, {dtype} {shape}, is a parameter of the module and not in the file",
        why="Strict loading raises. With strict=False the parameter keeps its random initial "
        "value.",
        fix="Find the tensor under another name, or train it; a checkpoint of the same model has "
        "it.",
        example="state = nn.Linear(2, 2).state_dict()\n"
        'del state["bias"]\n'
        "nn.Linear(2, 2).load_state_dict(state)",
    ),
)
def missing_parameter(loading: Loading) -> Iterator[Hit]:
    for held in _unexplained(loading):
        if held.kind is not Kind.BUFFER:
            yield hit(held.key, **_facts(held))


@check(
    Loading,
    Rule(
        code="CK202",
        name="missing-statistics-buffer",
        level=Level.ERROR,
        message="`{key}`, {dtype} {shape}, is a buffer that {origin} and not in the file",
        why="Its value came from training or from chance; the constructor does not bring it back. "
        "With strict=False the model runs on default statistics.",
        fix="Take it from a checkpoint that has it; converters that copy parameters only drop "
        "buffers.",
        example="state = nn.BatchNorm1d(4).state_dict()\n"
        'del state["running_mean"]\n'
        "nn.BatchNorm1d(4).load_state_dict(state)",
    ),
)
def missing_statistics(loading: Loading) -> Iterator[Hit]:
    for held in _unexplained(loading):
        if held.kind is Kind.BUFFER and not _recomputable(held):
            yield hit(held.key, origin=_origin(held), **_facts(held))


def _origin(held: Held) -> str:
    if held.statistic:
        return "training changes"
    if held.constancy is Constancy.RANDOM:
        return "is random on every construction"
    return "is not known to be the same on every construction"


@check(
    Loading,
    Rule(
        code="CK203",
        name="missing-recomputable-buffer",
        level=Level.WARNING,
        message="`{key}`, {dtype} {shape}, is a buffer that is not in the file{kept}; the "
        "constructor makes the same value every time",
        why="Strict loading raises, though nothing was lost, unless the old code changed the "
        "value after construction: a state_dict holds no trace of that.",
        fix="Let a migration mend the file: {command}",
        example="old.mask = torch.tril(torch.ones(4, 4))\n"
        'new.register_buffer("mask", torch.tril(torch.ones(4, 4)))\n'
        "new.load_state_dict(old.state_dict())",
    ),
)
def missing_recomputable(loading: Loading) -> Iterator[Hit]:
    for held in _unexplained(loading):
        if held.kind is Kind.BUFFER and _recomputable(held):
            inside = held.key in loading.state.unsaved
            kept = "'s state_dict, but among the pickled module's attributes" if inside else ""
            command = _migrate(loading)
            yield hit(held.key, kept=kept, in_file=inside, command=command, **_facts(held))


_AUXILIARY: Final = frozenset(
    [
        "criterion",
        "loss",
        "loss_fn",
        "loss_fct",
        "metric",
        "metrics",
        "lpips",
        "perceptual_loss",
        "teacher",
        "evaluator",
    ]
)


def _auxiliary_name(key: str) -> bool:
    """Whether a segment of `key` has a usual name of a loss, a metric or a frozen judge."""
    return any(
        s in _AUXILIARY or s.endswith(("_metric", "_metrics", "_loss")) for s in key.split(".")[:-1]
    )


def _lazy(loading: Loading, key: str) -> bool:
    """Whether the module registers `key` as a buffer that is None."""
    return key in loading.module.none_buffers


def _redundancy(loading: Loading, key: str) -> bool | None:
    """Whether the value equals the module's unsaved tensor `key`; None if not compared."""
    held = loading.module.held.get(key)
    return None if held is None or held.saved else loading.same_value.get(key)


@check(
    Loading,
    Rule(
        code="CK204",
        name="unexpected-key",
        level=Level.WARNING,
        message="`{key}`, {what}, is in the file and the module has no such key{why_not}",
        why="Strict loading raises. With strict=False the value is thrown away.",
        fix="Rename it if the module has it under another name; drop it if it is not needed: "
        'state_dict.pop("{key}")',
        example='state = {**model.state_dict(), "head2.weight": torch.ones(7)}\n'
        "model.load_state_dict(state)",
        gate=Level.ERROR,
    ),
)
def unexpected_key(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        key, tensor = change.key, change.actual
        told = _redundancy(loading, key) is not None
        if not told and not _auxiliary_name(key):
            reason = "; there it is a buffer that is still None" if _lazy(loading, key) else ""
            what = f"{tensor.dtype} {list(tensor.shape)}"
            yield hit(key, what=what, why_not=reason, nbytes=tensor.nbytes)
    claimed = quantised_keys(loading)
    for key in loading.unexpected_others:
        if not key.endswith("_extra_state") and key not in claimed:
            yield hit(key, what=loading.state.others[key], why_not="", nbytes=0)


@check(
    Loading,
    Rule(
        code="CK205",
        name="unexpected-redundant-buffer",
        level=Level.NOTE,
        message="`{key}` is in the file with the value that the module makes itself as {kind}",
        why="Strict loading raises on it, though dropping it changes nothing.",
        fix="Let a migration mend the file: {command}",
        example='old.register_buffer("position_ids", torch.arange(4))\n'
        'new.register_buffer("position_ids", torch.arange(4), persistent=False)\n'
        "new.load_state_dict(old.state_dict())",
    ),
)
def unexpected_redundant(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        if _redundancy(loading, change.key) is True:
            kind = str(loading.module.held[change.key].kind)
            yield hit(change.key, kind=kind, command=_migrate(loading))


@check(
    Loading,
    Rule(
        code="CK206",
        name="unexpected-buffer-value-differs",
        level=Level.ERROR,
        message="`{key}` is in the file with another value than the module makes itself as {kind}",
        why="Dropping the key, which is what strict=False does, gives a model that computes "
        "something else than the one that was saved.",
        fix="Make it a persistent buffer, or set it after loading: "
        'module.{key}.copy_(state_dict["{key}"])',
        example='old.register_buffer("inv_freq", 500000.0 ** -torch.arange(0, 1, 0.25))\n'
        'new.register_buffer("inv_freq", 1e4 ** -torch.arange(0, 1, 0.25), persistent=False)\n'
        "new.load_state_dict(old.state_dict(), strict=False)",
    ),
)
def unexpected_differs(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        if _redundancy(loading, change.key) is False:
            yield hit(change.key, kind=str(loading.module.held[change.key].kind))


@check(
    Loading,
    Rule(
        code="CK209",
        name="wrapper-prefix",
        level=Level.WARNING,
        message="{count} of the file's keys match once {what}",
        why="DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning "
        "put segments into keys. With strict=False such a file loads nothing, and nothing says "
        "so.",
        fix="Let a migration mend the file: {command}; or in code: state_dict = {code}",
        example="state = nn.DataParallel(model).state_dict()  # module.fc.weight\n"
        "model.load_state_dict(state)",
    ),
)
def wrapper_prefix(loading: Loading) -> Iterator[Hit]:
    rewrite = loading.rewrite
    if rewrite is None:
        return
    removed = [segment.rstrip(".") for segment in rewrite.removed]
    steps = [f"`{segment}.` is taken out" for segment in removed]
    if rewrite.added:
        steps.append(f"`{rewrite.added}` is put in front")
    yield hit(
        rewrite.added or f"{'.'.join(removed)}.",
        count=len(rewrite.keys),
        what=" and ".join(steps),
        code=_rewrite_code(removed, rewrite.added),
        command=_migrate(loading),
        removed=removed,
        added=rewrite.added,
    )


def _rewrite_code(removed: list[str], added: str) -> str:
    """Return a dict comprehension, as source text, that rewrites the prefixes of a state_dict."""
    if not removed:
        return f'{{"{added}" + k: v for k, v in state_dict.items()}}'
    gone = "{" + ", ".join(f'"{s}"' for s in removed) + "}"
    front = f'"{added}" + ' if added else ""
    kept = f'".".join(s for s in k.split(".") if s not in {gone})'
    return f"{{{front}{kept}: v for k, v in state_dict.items()}}"


@check(
    Loading,
    Rule(
        code="CK211",
        name="probable-rename",
        level=Level.WARNING,
        message="`{key}` is missing and `{found}`, of the same shape{how}, is unexpected: probably "
        "the same tensor",
        why="A refactor renamed the module. With strict=False the trained values are thrown away "
        "and the parameter stays at random.",
        fix="Let a migration mend the file: {command}",
        example="old.enc = nn.Linear(8, 8)\n"
        "new.encoder = nn.Linear(8, 8)\n"
        "new.load_state_dict(old.state_dict())",
    ),
)
def probable_rename(loading: Loading) -> Iterator[Hit]:
    for key, found in loading.renames.items():
        ending = key.rpartition(".")[2] == found.rpartition(".")[2]
        how = " and name ending" if ending else " and by the old name of a LayerNorm's parameter"
        yield hit(key, found=found, how=how, command=_migrate(loading))


@also(
    Revision,
    "CK211",
    message="`{key}` is `{found}` in the new file: dtype, shape and all values are the same",
    fix="Keep the name, or rename it where the old file is loaded: "
    'state_dict["{found}"] = state_dict.pop("{key}")',
)
def key_renamed(revision: Revision) -> Iterator[Hit]:
    for key, found in revision.renames.items():
        if key in revision.proved:
            yield hit(key, found=found, proved=True)


@check(
    Loading,
    Rule(
        code="CK214",
        name="auxiliary-keys",
        level=Level.NOTE,
        message="`{key}` belongs to a loss, a metric or a network that only judges ({whose})",
        why="Class weights and metrics travel with the model and make strict loading raise, "
        "though the model does not need them.",
        fix='state_dict.pop("{key}"), or build the module with the same loss',
        example="trained.criterion = nn.CrossEntropyLoss(torch.ones(10))\n"
        "released.load_state_dict(trained.state_dict())",
    ),
)
def auxiliary_keys(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        if _auxiliary_name(change.key) and _redundancy(loading, change.key) is None:
            yield hit(change.key, whose="by its name")
    for held in _unexplained(loading):
        owner = loading.module.modules.get(held.key.rpartition(".")[0])
        if owner is not None and owner.auxiliary:
            yield hit(held.key, whose=owner.name)


@check(
    Loading,
    Rule(
        code="CK220",
        name="extra-state-mismatch",
        level=Level.WARNING,
        message="`{key}` is {which}: state that a module writes by get_extra_state()",
        why="Strict loading raises on missing or unexpected extra state. It may hold scaling "
        "factors that the forward pass needs, or nothing at all.",
        fix='Missing: state_dict["{key}"] = module.state_dict()["{key}"], if the fresh value will '
        'do. Unexpected: state_dict.pop("{key}")',
        example="state = model.state_dict()\n"
        "state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}\n"
        "model.load_state_dict(state)  # without its _extra_state",
    ),
)
def extra_state(loading: Loading) -> Iterator[Hit]:
    claimed = quantised_keys(loading)
    for key in loading.missing_others:
        if key not in claimed:
            yield hit(key, which="expected by the module and not in the file")
    for key in loading.unexpected_others:
        if key.endswith("_extra_state"):
            yield hit(key, which="in the file and not expected by the module")
