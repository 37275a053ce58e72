"""benchmarks/ratios.json and the script that compares another run with it."""

import importlib.util
import json

import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ratios_are_those_of_the_cases():
    script = load_script("run")
    ratios = json.loads((BENCHMARKS / "ratios.json").read_text())
    commands = [f"{case.name} / {case.today}" for case in script.CASES]
    assert list(ratios)[: len(commands)] == commands
    loads = [name.partition(" / ")[0] for name in list(ratios)[len(commands) :]]
    assert loads == [f"`load`, {words}" for words in script.LOADED.values()]
    assert all(set(by) == {"clock", "processor"} for by in ratios.values())


@pytest.mark.parametrize(
    ("clock", "processor", "is_worse"),
    [
        (1.0, 1.0, False),
        (1.21, 1.21, True),
        (2.0, 1.1, False),
        (1.1, 2.0, False),
        (0.5, 0.5, False),
    ],
)
def test_a_ratio_is_worse_by_the_clock_and_of_the_processor(clock, processor, is_worse):
    old = {"diff / cmp": {"clock": 1.0, "processor": 1.0}}
    new = {"diff / cmp": {"clock": clock, "processor": processor}}
    assert bool(load_script("compare").list_worse(old, new)) is is_worse


def test_a_ratio_that_is_not_measured_again_is_said():
    old = {"diff / cmp": {"clock": 1.0, "processor": 1.0}}
    assert load_script("compare").list_worse(old, {}) == ["diff / cmp: not measured"]
