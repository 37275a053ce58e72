"""Static facts: where an attribute is assigned, used by forward, and written later."""

import pytest
from modules import modules_for_tests
from modules.marked_lines import marked
from torch import nn

from ckptool.modules import describe_module
from ckptool.modules.source.source_analysis import SourceAnalysis


@pytest.mark.parametrize(
    "name", ["assigned", "indexed", "added", "data", "out", "initialised", "running", "later"]
)
def test_a_write_after_construction(name):
    assert SourceAnalysis().find_write(modules_for_tests.Statistic, name) == marked(
        f"Statistic.{name}"
    )


@pytest.mark.parametrize("name", ["helper", "frozen", "moved", "read", "unknown"])
def test_no_write_after_construction(name):
    assert SourceAnalysis().find_write(modules_for_tests.Statistic, name) == ""


def test_written_buffers_are_statistics():
    held = describe_module(modules_for_tests.Statistic(), "live").tensors
    written = {"assigned", "indexed", "added", "data", "out", "initialised", "running", "later"}
    assert {key for key, h in held.items() if h.is_statistic} == written


@pytest.mark.parametrize("name", ["direct", "helped", "by_property", "by_name", "passed"])
@pytest.mark.parametrize("cls", [modules_for_tests.Using, modules_for_tests.UsingMore])
def test_a_use_that_forward_reaches(cls, name):
    assert SourceAnalysis().find_use(cls, name) == marked(f"Using.{name}")


def test_a_use_that_forward_does_not_reach():
    assert SourceAnalysis().find_use(modules_for_tests.Using, "unused") == ""
    assert SourceAnalysis().find_use(modules_for_tests.Using, "inherited") == ""
    assert SourceAnalysis().find_use(modules_for_tests.UsingMore, "inherited") == marked(
        "UsingMore.inherited"
    )


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (modules_for_tests.AttrMask, "mask"),
        (modules_for_tests.ListLayers, "convs"),
        (modules_for_tests.ClassTable, "table"),
    ],
)
def test_the_place_of_an_assignment(cls, name):
    assert SourceAnalysis().find_assignment(cls, name) == marked(f"{cls.__name__}.{name}")


def test_a_decorated_method_is_read(tmp_path, monkeypatch):
    source = (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    @torch.no_grad()\n"
        "    def forward(self, x):\n"
        "        return x + self.mask\n"
    )
    (tmp_path / "decorated_model.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    from decorated_model import Net

    assert SourceAnalysis().find_use(Net, "mask") == "decorated_model.py:5"


def test_code_without_source_has_no_places():
    space = {"nn": nn}
    source = (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.mask = nn.Linear(1, 1).weight.data\n"
        "    def forward(self, x):\n"
        "        return self.mask\n"
    )
    exec(source, space)
    held = describe_module(space["Net"](), "live").tensors["mask"]
    assert (held.assigned_at, held.used_at, held.written_at) == ("", "", "")


def test_source_that_changed_since_it_was_imported_gives_no_places(tmp_path, monkeypatch):
    file = tmp_path / "changing_model.py"
    file.write_text("import torch\nclass Net(torch.nn.Module):\n    def forward(self): self.x\n")
    monkeypatch.syspath_prepend(tmp_path)
    from changing_model import Net

    file.write_text("def broken(:\n")
    assert SourceAnalysis().find_use(Net, "x") == ""


def test_torchs_own_statistics():
    written = SourceAnalysis().find_write(nn.BatchNorm1d, "num_batches_tracked")
    assert "torch/nn/modules/batchnorm.py:" in written
    assert SourceAnalysis().find_write(nn.Linear, "weight") == ""


@pytest.mark.parametrize("name", ["moved", "indexed", "kept", "number", "shape"])
def test_forward_takes_it_to_the_device_itself(name):
    assert SourceAnalysis().find_move(modules_for_tests.Carrying, name)


@pytest.mark.parametrize("name", ["bare", "both", "added", "unknown"])
def test_forward_needs_it_on_the_device(name):
    assert not SourceAnalysis().find_move(modules_for_tests.Carrying, name)
