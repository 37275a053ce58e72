"""A constructor that loads weights is built with real ones, and torch's warnings do not flood."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptool
from ckptool.modules.describe import examine_and_build
from ckptool.modules.import_target import ModuleSpec

STATE = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))).state_dict()


def body() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))


class LoadsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.load_state_dict({f"body.{key}": value for key, value in STATE.items()})


class LoadsPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.body.load_state_dict(STATE, strict=False)
        self.head = nn.Linear(3, 1)


class LoadsFile(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.body = body()
        self.body.load_state_dict(torch.load(path, weights_only=True))


class Catches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        try:
            self.body.load_state_dict({"another": torch.ones(1)})
        except RuntimeError:
            self.body.load_state_dict(STATE)


class Assigns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.body.load_state_dict(STATE, assign=True)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()


CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    "itself": LoadsItself,
    "part": LoadsPart,
    "file": LoadsFile,
    "catches": Catches,
    "assigns": Assigns,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def options_of(cls: Callable[..., nn.Module], weights: Path) -> dict[str, object]:
    return {"path": str(weights)} if cls is LoadsFile else {}


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_it_is_built_for_real_and_says_nothing(case: str, weights: Path):
    cls = CONSTRUCTORS[case]
    kwargs = options_of(cls, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info, module = examine_and_build(ModuleSpec(case, kwargs, python_object=cls))
    assert {*info.saved_tensors} == {*cls(**kwargs).state_dict()}
    assert torch.equal(module.state_dict()["body.0.weight"], STATE["0.weight"])
    assert {s.what: s.reason for s in info.skipped}["building without weights"] == (
        "its constructor loads weights: it was built with real ones"
    )


def test_without_a_load_it_stays_on_meta():
    _, module = examine_and_build(ModuleSpec("plain", python_object=Plain))
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_a_comparison_says_that_it_loads(case: str, weights: Path, tmp_path: Path):
    cls = CONSTRUCTORS[case]
    kwargs = options_of(cls, weights)
    torch.save(cls(**kwargs).state_dict(), tmp_path / "model.pth")
    assert ckptool.diff(tmp_path / "model.pth", module=cls, kwargs=kwargs).exit_code == 0


WARNS = """
import warnings
import torch
from torch import nn
warnings.warn("at import")
class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        warnings.warn("old argument", FutureWarning)
        for number in range(COUNT):
            warnings.warn(f"number {number} \\x1b[31m")
"""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "2 warnings"), (1, "3 warnings"), (300, "302 warnings")]
)
def test_warnings_are_counted_and_shown_with_v(count, text, ckptool, tmp_path: Path):
    (tmp_path / "warns.py").write_text(WARNS.replace("COUNT", str(count)))
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "model.pth")
    words = ("diff", "model.pth", "-m", "warns.py:Net")
    ran = ckptool(*words, cwd=tmp_path)
    assert ran.code == 0
    assert f"{text} of user code; -v shows them" in ran.err
    assert "old argument" not in ran.err
    ran = ckptool(*words, "-v", cwd=tmp_path)
    assert "warning of user code: FutureWarning: old argument (warns.py:9)" in ran.err
    assert "\x1b" not in ran.err
    assert ("more warnings of user code" in ran.err) is (count > 100)
