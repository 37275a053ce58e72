"""Missing x unexpected keys -> RenameGroups."""

from collections.abc import Mapping

from msgspec import Struct


class RenameGroup(Struct, frozen=True):
    """Renames that one change of the code explains: a subtree, a pattern of keys, a renumbering."""

    old_pattern: str
    new_pattern: str
    pairs: Mapping[str, str]
    evidence: str
    is_unambiguous: bool
    transposed_keys: tuple[str, ...] = ()
    is_documented: bool = False


def group_renames(renames: Mapping[str, str]) -> tuple[RenameGroup, ...]:
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for new, old in renames.items():
        a, b = old.split("."), new.split(".")
        while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
            a.pop(), b.pop()
        groups.setdefault((".".join(a), ".".join(b)), {})[old] = new
    return tuple(
        RenameGroup(
            f"{a}.*" if list(pairs) != [a] else a,
            f"{b}.*" if list(pairs) != [a] else b,
            pairs,
            f"{len(pairs)} tensors of the same shapes",
            is_unambiguous=True,
            is_documented=a.endswith(("gamma", "beta")) and b.endswith(("weight", "bias")),
        )
        for (a, b), pairs in groups.items()
    )
