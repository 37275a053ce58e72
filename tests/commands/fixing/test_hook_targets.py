"""The files beside a hook, whose names come from its name: never the source, nor the result."""

import resource
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.errors import UsageError, WriteError

LINEAR = {"module": "torch.nn:Linear", "kwargs": {"in_features": 2, "out_features": 3}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net_old.pth"
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    return path


def _list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_hook_never_replaces_the_source_by_its_example(source: Path) -> None:
    """With --force, net.py has net_old.pth as its example, which was the checkpoint itself."""
    before = source.read_bytes()
    with pytest.raises(WriteError, match=r"net_old\.pth: is .*net_old\.pth itself"):
        ckptool.migrate(
            source, source.with_name("out.pth"), **LINEAR,
            emit_hook=source.with_name("net.py"), force=True,
        )  # fmt: skip
    assert source.read_bytes() == before
    assert _list_names(source.parent) == ["net_old.pth"]


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("b_new.pth", {}),
        ("b_old.pth", {}),
        ("out.pth", {"save_plan": "b.py"}),
        ("out.pth", {"save_plan": "test_b.py"}),
        ("out.pth", {"save_plan": "out.pth.ckptool.json", "emit_hook": None}),
    ],
)
def test_two_outputs_of_one_name_are_refused_before_anything_is_written(
    target: str, options: dict[str, str | None], source: Path
) -> None:
    names = {"emit_hook": "b.py", **options}
    paths = {name: source.with_name(value) for name, value in names.items() if value}
    with pytest.raises(UsageError, match="are the same file"):
        ckptool.migrate(source, source.with_name(target), **LINEAR, force=True, **paths)
    assert _list_names(source.parent) == ["net_old.pth"]


@pytest.mark.parametrize("name", ["b.py", "test_b.py", "b_old.pth"])
def test_a_hook_that_cannot_be_written_is_known_before_the_result_is(
    name: str, source: Path
) -> None:
    source.with_name(name).mkdir()
    with pytest.raises(WriteError, match="is a folder, and a file would be written"):
        ckptool.migrate(
            source, source.with_name("out.pth"), **LINEAR, emit_hook=source.with_name("b.py")
        )
    assert _list_names(source.parent) == sorted([name, "net_old.pth"])


def test_a_write_that_fails_leaves_no_plan_behind(source: Path) -> None:
    """The plan was written first: the same command was then refused, since the plan existed."""
    big = source.with_name("big.pth")
    torch.save(torch.nn.Linear(512, 512).state_dict(), big)
    arguments = (big, source.with_name("out.pth"))
    options = {"module": "torch.nn:Linear", "kwargs": {"in_features": 512, "out_features": 512}}
    plan = source.with_name("plan.toml")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"out\.pth"):
            ckptool.migrate(*arguments, **options, save_plan=plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _list_names(source.parent) == ["big.pth", "net_old.pth"]
    ckptool.migrate(*arguments, **options, save_plan=plan)
    assert torch.load(arguments[1])["weight"].equal(torch.load(big)["weight"])
