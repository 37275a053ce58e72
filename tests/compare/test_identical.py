"""`identical` means everything: what torch would load differently is said to differ, or named."""

import enum
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import packed_weights
import pytest
import torch
from safetensors.torch import save_file
from script_modules import WRITERS, Network
from torch import nn

import ckptool

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Recipe:
    """An object that is pickled as a call with arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[type["Recipe"], tuple[object, ...]]:
        return Recipe, self.arguments


class Point(NamedTuple):
    x: torch.Tensor
    number: int


class Thresholded(nn.Module):
    """A module with extra state, a plain attribute and a buffer that is not saved."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.threshold = threshold
        self.register_buffer("scale", torch.full((2,), threshold), persistent=False)
        with torch.no_grad():
            self.fc.weight.fill_(1.0)
            self.fc.bias.fill_(0.0)

    def get_extra_state(self) -> float:
        return self.threshold

    def set_extra_state(self, state: float) -> None:
        self.threshold = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.threshold


def build_state(**others: object) -> dict[str, object]:
    return {"w": WEIGHT.clone(), **others}


def build_versioned(version: int) -> dict[str, torch.Tensor]:
    state = nn.BatchNorm1d(2).state_dict()
    state._metadata[""]["version"] = version
    return state


def build_tagged(tag: str) -> dict[str, object]:
    weight = nn.Parameter(WEIGHT.clone())
    weight.tag = tag
    return {"w": weight}


def build_attributed(value: object) -> dict[str, object]:
    """Build a parameter with an attribute that contains tensors."""
    weight = nn.Parameter(WEIGHT.clone())
    weight.range = value
    return {"w": weight}


def build_with_attribute(**attributes: object) -> nn.Module:
    module = Thresholded()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def nest(value: object) -> object:
    return functools.reduce(lambda inner, _: [inner], range(12), value)


PAIRS = {
    "extra state": (Thresholded(0.5).state_dict(), Thresholded(0.9).state_dict()),
    "an epoch": (build_state(epoch=1), build_state(epoch=2)),
    "an epoch that one lacks": (build_state(), build_state(epoch=2)),
    "an int and a float": (build_state(epoch=1), build_state(epoch=1.0)),
    "an int and a bool": (build_state(epoch=1), build_state(epoch=True)),
    "bytes": (build_state(vocabulary=b"a" * 9), build_state(vocabulary=b"a" * 8 + b"b")),
    "long text": (build_state(text="a" * 20_000), build_state(text="a" * 19_999 + "b")),
    "a long list": (build_state(seen=[0] * 30_000), build_state(seen=[0] * 29_999 + [1])),
    "a large number": (build_state(seed=1 << 2000), build_state(seed=(1 << 2000) + 1)),
    "an array": (build_state(mean=np.zeros(3)), build_state(mean=np.ones(3))),
    "an array in a list": (build_state(mean=[np.zeros(3)]), build_state(mean=[np.ones(3)])),
    "an array of text": (build_state(n=np.array(["a"])), build_state(n=np.array(["b"]))),
    "a set": (build_state(kept={1, 2}), build_state(kept={1, 3})),
    "a nested value": (build_state(hp={"lr": {"v": 1}}), build_state(hp={"lr": {"v": 2}})),
    "versions": (build_versioned(1), build_versioned(2)),
    "an attribute of a parameter": (build_tagged("a"), build_tagged("b")),
    "the scheduler's state": (
        {"model": build_state(), "scheduler": {"last_epoch": 1}},
        {"model": build_state(), "scheduler": {"last_epoch": 2}},
    ),
    "a function with a tensor": (
        build_state(f=functools.partial(torch.add, WEIGHT)),
        build_state(f=functools.partial(torch.sub, WEIGHT)),
    ),
    "an argument of a function's recipe": (
        build_state(r=Recipe(torch.add, WEIGHT)),
        build_state(r=Recipe(torch.sub, WEIGHT)),
    ),
    "keys of another type": (build_state(s={0: WEIGHT}), build_state(s={"0": WEIGHT})),
    "keys that are bytes": (build_state(s={b"a": WEIGHT}), build_state(s={"a": WEIGHT})),
    "keys that are tuples": (
        build_state(s={("a", 0): WEIGHT}),
        build_state(s={("a", 1): WEIGHT}),
    ),
    "keys that are enums": (
        build_state(s={Color.RED: WEIGHT}),
        build_state(s={Color.BLUE: WEIGHT}),
    ),
    "keys that are tensors": (build_state(s={WEIGHT: 1}), build_state(s={WEIGHT + 1: 1})),
    "a list and a tuple of tensors": (build_state(s=[WEIGHT]), build_state(s=(WEIGHT,))),
    "a number next to a tensor": (
        build_state(p=Point(WEIGHT, 1)),
        build_state(p=Point(WEIGHT, 2)),
    ),
    "a bare storage": (
        build_state(s=WEIGHT.untyped_storage()),
        build_state(s=(WEIGHT + 1).untyped_storage()),
    ),
    "a bare storage in a call": (
        build_state(r=Recipe(WEIGHT.untyped_storage())),
        build_state(r=Recipe((WEIGHT + 1).untyped_storage())),
    ),
    "a number next to a bare storage": (
        build_state(s=[1, WEIGHT.untyped_storage()]),
        build_state(s=[2, WEIGHT.untyped_storage()]),
    ),
    "a tensor in an attribute of a parameter": (
        build_attributed({"low": [WEIGHT]}),
        build_attributed({"low": [WEIGHT + 1]}),
    ),
    "an array in an attribute of a parameter": (
        build_attributed({"low": np.zeros(3)}),
        build_attributed({"low": np.ones(3)}),
    ),
    "a tensor deep in a module": (
        build_with_attribute(deep=nest(WEIGHT)),
        build_with_attribute(deep=nest(WEIGHT + 1)),
    ),
    "an array deep in a module": (
        build_with_attribute(deep=nest({"a": np.zeros(3)})),
        build_with_attribute(deep=nest({"a": np.ones(3)})),
    ),
    "an unsaved buffer": (Thresholded(0.5), Thresholded(0.9)),
    "an optimizer's group": (
        {"model": build_state(), "optimizer": torch.optim.SGD([nn.Parameter(WEIGHT)], 0.1)},
        {"model": build_state(), "optimizer": torch.optim.SGD([nn.Parameter(WEIGHT)], 0.2)},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_differs_is_not_identical(tmp_path: Path, name: str, legacy: bool) -> None:
    paths = [tmp_path / f"{side}.pth" for side in ("old", "new", "again")]
    old, new = PAIRS[name]
    for path, content in zip(paths, (old, new, old), strict=True):
        saved = {
            key: value.state_dict() if isinstance(value, torch.optim.Optimizer) else value
            for key, value in content.items()
        } if type(content) is dict else content  # fmt: skip
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    report = ckptool.diff(paths[0], paths[1])
    assert report.verdict in {"plain data differs", "values differ", "breaking"}
    assert report.exit_code == 1
    assert report.changed_entries or report.changed_keys
    assert ckptool.diff(paths[0], paths[2]).verdict == "identical"


def test_a_view_of_a_parameter_that_is_an_attribute_of_the_module_is_compared(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / f"{row}.pth" for row in range(2)]
    for row, path in enumerate(paths):
        module = Thresholded()
        with torch.no_grad():
            module.fc.weight[:] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        module.row = module.fc.weight.detach()[row]
        torch.save(module, path)
    rows = [torch.load(path, weights_only=False).row for path in paths]
    assert not torch.equal(*rows)
    report = ckptool.diff(*paths)
    assert (report.verdict, report.changed_entries) == ("plain data differs", ("row",))
    assert ckptool.diff(paths[0], paths[0]).verdict == "identical"


def test_a_parameter_of_a_module_that_is_frozen_is_not_identical(tmp_path: Path) -> None:
    modules = [Thresholded(), Thresholded()]
    modules[1].fc.weight.requires_grad_(False)
    writers = {
        "module": torch.save,
        "nested": lambda module, path: torch.save({"model": module, "w": WEIGHT}, path),
        "script": lambda module, path: torch.jit.trace(module, torch.ones(1, 2)).save(path),
    }
    for name, write in writers.items():
        paths = [tmp_path / f"{name}-{number}.pt" for number in range(2)]
        for module, path in zip(modules, paths, strict=True):
            write(module, path)
        report = ckptool.diff(*paths)
        assert report.verdict == "plain data differs"
        assert [place.rpartition("fc.")[2] for place in report.changed_entries] == [
            "weight (requires_grad)"
        ]
        assert ckptool.diff(paths[1], paths[1]).verdict == "identical"
    flags = [torch.load(path, weights_only=False)["model"].fc.weight.requires_grad
             for path in sorted(tmp_path.glob("nested-*"))]  # fmt: skip
    assert flags == [True, False]


def test_the_flag_of_a_tensor_that_no_module_has_does_not_count(tmp_path: Path) -> None:
    weights = [nn.Parameter(WEIGHT), nn.Parameter(WEIGHT, requires_grad=False), WEIGHT]
    paths = [tmp_path / f"{number}.pt" for number in range(3)]
    for weight, path in zip(weights, paths, strict=True):
        torch.save({"weight": weight}, path)
    loaded = [nn.Linear(3, 2, bias=False) for _ in paths]
    for module, path in zip(loaded, paths, strict=True):
        module.load_state_dict(torch.load(path))
        assert torch.equal(module.weight, WEIGHT)
        assert module.weight.requires_grad
    assert {ckptool.diff(paths[0], path).verdict for path in paths} == {"identical"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_whether_a_sparse_tensor_is_coalesced_is_compared(tmp_path: Path, legacy: bool) -> None:
    indices = torch.eye(3).to_sparse().indices()
    tensors = {
        "coalesced": torch.sparse_coo_tensor(indices, torch.ones(3), (3, 3)).coalesce(),
        "uncoalesced": torch.sparse_coo_tensor(indices, torch.ones(3), (3, 3)),
    }
    paths = [tmp_path / f"{name}.pth" for name in tensors]
    for path, tensor in zip(paths, tensors.values(), strict=True):
        torch.save({"w": tensor}, path, _use_new_zipfile_serialization=not legacy)
    old, new = (torch.load(path)["w"] for path in paths)
    assert (old.is_coalesced(), new.is_coalesced()) == (True, False)
    report = ckptool.diff(*paths)
    assert (report.verdict, report.changed_entries) == (
        "plain data differs",
        ("w (is_coalesced)",),
    )
    for path in paths:
        assert ckptool.diff(path, path).verdict == "identical"


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_are_compared_by_integers_and_scales(tmp_path: Path) -> None:
    ones, scales = torch.ones(2, dtype=torch.int8), torch.ones(2)
    axis_0 = (scales, torch.zeros(2), 0, torch.qint8)
    tensors = {
        "a": torch.quantize_per_channel(WEIGHT, *axis_0),
        "b": torch.quantize_per_channel(-WEIGHT, *axis_0),
        "c": torch._make_per_tensor_quantized_tensor(ones, 0.1, 0),
        "d": torch._make_per_tensor_quantized_tensor(ones, 0.2, 0),
        "e": torch._make_per_tensor_quantized_tensor(ones, 0.1, 1),
    }
    for name, tensor in tensors.items():
        torch.save({"w": tensor}, tmp_path / f"{name}.pth")
    digests = ckptool.digest(sorted(tmp_path.iterdir())).checkpoints
    assert len({digest.digest for digest in digests}) == 5
    for old, new in ("ab", "cd", "ce"):
        report = ckptool.diff(tmp_path / f"{old}.pth", tmp_path / f"{new}.pth")
        assert (report.verdict, report.value_keys) == ("values differ", ("w",))
    assert ckptool.diff(tmp_path / "a.pth", tmp_path / "a.pth").verdict == "identical"


@pytest.mark.parametrize(
    "states",
    [
        ({"model": build_state(), "ema": build_state()}, {"model": build_state()}),
        ({"model": build_state()}, {"model": build_state(), "ema": build_state()}),
    ],
)
def test_a_state_without_a_counterpart_is_named(tmp_path: Path, states: tuple[dict, dict]) -> None:
    for name, state in zip(("old.pth", "new.pth"), states, strict=True):
        torch.save(state, tmp_path / name)
    report = ckptool.diff(tmp_path / "old.pth", tmp_path / "new.pth")
    assert report.verdict != "identical"
    assert any("`ema`" in skipped.reason for skipped in report.skipped)


def test_a_chosen_place_says_what_was_left_out(tmp_path: Path) -> None:
    for name, ema in (("old.pth", 0.0), ("new.pth", 1.0)):
        torch.save({"model": build_state(), "ema": {"w": torch.full((2,), ema)}}, tmp_path / name)
    report = ckptool.diff(tmp_path / "old.pth", tmp_path / "new.pth", at="model")
    assert (report.verdict, report.exit_code) == ("same state", 0)
    assert any("`ema` (1 tensor)" in skipped.reason for skipped in report.skipped)


def test_metadata_of_safetensors_is_compared(tmp_path: Path) -> None:
    for name, step in (("old", "1"), ("new", "2"), ("again", "1")):
        save_file({"w": WEIGHT}, tmp_path / f"{name}.safetensors", {"format": "pt", "step": step})
    old, new, again = (tmp_path / f"{name}.safetensors" for name in ("old", "new", "again"))
    report = ckptool.diff(old, new)
    assert (report.verdict, report.changed_entries) == (
        "plain data differs",
        ("__metadata__.step",),
    )
    assert ckptool.diff(old, again).verdict == "identical"


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w


class Shifted(Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w + 1


def export(module: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(module, (torch.ones(2),)), path)


def script(module: nn.Module, path: Path) -> None:
    torch.jit.script(module).save(path)


def trace(module: nn.Module, path: Path) -> None:
    torch.jit.trace(module, torch.ones(2)).save(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("save", "suffix"),
    [(export, "pt2"), (script, "pt"), (trace, "pt")],
    ids=["export", "script", "trace"],
)
def test_code_is_compared(tmp_path: Path, save, suffix: str) -> None:
    old, new = tmp_path / f"old.{suffix}", tmp_path / f"new.{suffix}"
    save(Scaled(), old)
    save(Shifted(), new)
    load = torch.jit.load if suffix == "pt" else lambda p: torch.export.load(p).module()
    assert not torch.equal(load(old)(torch.ones(2)), load(new)(torch.ones(2)))
    report = ckptool.diff(old, new)
    assert report.verdict == "plain data differs"
    assert report.exit_code == 1
    assert any(place.startswith("record ") for place in report.changed_entries)
    assert ckptool.diff(old, old).verdict == "identical"


def run_saved(path: Path) -> torch.Tensor:
    loaded = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path)
    return loaded(torch.tensor([[1.0, -2.0]]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", WRITERS)
def test_names_that_a_process_makes_for_classes_do_not_count(tmp_path: Path, writer: str) -> None:
    suffix = ".pt2" if writer == "export" else ".pt"
    modules = {"first": Network(), "second": Network(), "swapped": Network((3, 2))}
    paths = [tmp_path / f"{name}{suffix}" for name in modules]
    for module, path in zip(modules.values(), paths, strict=True):
        torch.jit._state._clear_class_state()  # what another process knows of these classes
        WRITERS[writer](module, path)
    first, second, swapped = map(run_saved, paths)
    assert torch.equal(first, second)
    assert not torch.equal(first, swapped)
    report = ckptool.diff(paths[0], paths[1])
    assert (report.verdict, report.changed_entries) == ("identical", ())
    report = ckptool.diff(paths[0], paths[2])
    assert report.verdict == "plain data differs"
    assert report.exit_code == 1


@pytest.mark.process
@pytest.mark.parametrize("writer", ["script", "trace", "freeze"])
def test_the_order_of_a_set_in_the_code_of_a_class_does_not_count(
    tmp_path: Path, writer: str
) -> None:
    """The constants of a class are written in an order that Python's hash seed determines."""
    paths = [tmp_path / f"{seed}.pt" for seed in range(3)]
    for seed, path in enumerate(paths):
        code = (
            "import sys, torch, script_modules as modules\n"
            "for _ in range(int(sys.argv[2])): torch.jit.script(torch.nn.Linear(5, 5))\n"
            f"modules.WRITERS[{writer!r}](modules.Network(), sys.argv[1])"
        )
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-W", "ignore", "-c", code, str(path), str(seed)]
        subprocess.run(command, check=True, env=environment)
    first, *others = map(run_saved, paths)
    assert all(torch.equal(first, other) for other in others)
    assert {ckptool.diff(paths[0], path).verdict for path in paths} == {"identical"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", ["dynamically", "statically", "recurrent"])
@pytest.mark.parametrize("form", ["script", "frozen", "module"])
def test_packed_weights_are_compared(tmp_path: Path, build: str, form: str) -> None:
    """Two quantised models whose outputs differ: values differ, and digests do."""
    function = getattr(
        packed_weights, "quantize_recurrent" if build == "recurrent" else f"quantize_{build}"
    )
    example = {
        "dynamically": torch.ones(1, 8),
        "statically": torch.ones(1, 3, 8, 8),
        "recurrent": torch.arange(6).view(3, 2),
    }[build]
    paths = [tmp_path / "0.pt", tmp_path / "1.pt"]
    outputs = []
    with packed_weights.quantization_engine():
        for seed, path in enumerate(paths):
            module = function(seed)
            outputs.append(module(example))
            if form == "module":
                torch.save(module, path)
                continue
            traced = torch.jit.trace(module, example)
            (torch.jit.freeze(traced) if form == "frozen" else traced).save(path)
    assert not torch.equal(*outputs)
    report = ckptool.diff(*paths)
    assert report.verdict == "values differ"
    assert ckptool.diff(paths[0], paths[0]).verdict == "identical"
    digests = [digest.digest for digest in ckptool.digest(paths).checkpoints]
    assert len(set(digests)) == 2
    assert not any(digest.startswith("partial") for digest in digests)
    with pytest.raises(ckptool.CkptoolError, match="packed objects"):
        ckptool.migrate(paths[0], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_packed_object_is_not_checked(tmp_path: Path) -> None:
    path = packed_weights.script_quantized(tmp_path / "a.pt", seed=0)
    packed_weights.rename_compiled_class(path, "quantized", "mylibrary")
    report = ckptool.diff(path, path)
    assert report.verdict == "compatible"
    assert any("packed object" in skipped.what for skipped in report.skipped)
    digest = ckptool.digest(path)
    assert digest.checkpoints[0].digest.startswith("partial:")
    assert any("packed object" in skipped.what for skipped in digest.skipped)
    assert ckptool.gate(path).exit_code == 1
    with pytest.raises(ckptool.CkptoolError, match="packed objects"):
        ckptool.migrate(path, tmp_path / "out.safetensors")


def test_shards_of_another_number_are_the_same_state(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(2)}
    for folder, names in (("one", ["1", "1"]), ("two", ["1", "2"])):
        (tmp_path / folder).mkdir()
        for name in set(names):
            part = {key: t for key, t in state.items() if names["ab".index(key)] == name}
            save_file(part, tmp_path / folder / f"{name}.safetensors", {"format": "pt"})
        weight_map = {key: f"{names['ab'.index(key)]}.safetensors" for key in "ab"}
        index = json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map})
        (tmp_path / folder / "m.safetensors.index.json").write_text(index)
    assert ckptool.diff(tmp_path / "one", tmp_path / "two").verdict == "identical"


@pytest.mark.parametrize(("epoch", "result"), [(1, "the same keys"), (2, "plain data differs")])
def test_gate_against_a_file_says_what_was_compared(
    tmp_path: Path, epoch: int, result: str
) -> None:
    torch.save(build_state(epoch=1), tmp_path / "old.pth")
    torch.save({**build_state(epoch=epoch), "w": WEIGHT + 1}, tmp_path / "new.pth")
    report = ckptool.gate(tmp_path / "new.pth", against=tmp_path / "old.pth")
    (promise,) = report.checkpoints[0].promises
    assert result in promise.result
    assert promise.result != "the same"
    assert any(skipped.what.startswith("values against") for skipped in report.skipped)
