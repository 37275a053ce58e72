"""Leaves of a DCP checkpoint, and their paths -> the nested dicts and lists that were saved."""

from typing import Any, Final

from ckptool.formats.pickle.nodes import PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name

_MAX_PATH_STEPS: Final = 64


class _NestedDict(dict[Any, Any]):
    """Container made from planner paths, distinct from dicts that were pickled."""


def nest_by_path(leaves: dict[str, object], planner_data: object) -> object:
    """Rebuild the nested state_dict from planner_data, which maps each key to its path.

    Raises:
        PickleTreeError: a path is invalid, or two paths contradict each other.
    """
    paths_by_key = planner_data if isinstance(planner_data, dict) else {}
    root = _NestedDict()
    for key, node in leaves.items():
        path = paths_by_key.get(key, (key,))
        if type(path) is not tuple or not 0 < len(path) <= _MAX_PATH_STEPS:
            raise PickleTreeError(f"{quote_name(key)} has an invalid path")
        if not all(type(step) in {str, int} for step in path):
            raise PickleTreeError(f"{quote_name(key)} has an invalid path")
        parent = root
        for step in path[:-1]:
            parent = parent.setdefault(step, _NestedDict())
            if type(parent) is not _NestedDict:
                raise PickleTreeError(f"{quote_name(key)} is nested in another key")
        if parent.setdefault(path[-1], node) is not node:
            raise PickleTreeError(f"{quote_name(key)} has the location of another key")
    return _convert_to_lists(root)


def _convert_to_lists(node: object) -> object:
    """Convert nested containers with keys 0..n-1 to lists, the others to dicts."""
    if type(node) is not _NestedDict:
        return node
    children = {step: _convert_to_lists(child) for step, child in node.items()}
    indices = list(range(len(children)))
    if children and all(type(step) is int for step in children) and sorted(children) == indices:
        return [children[step] for step in indices]
    return children
