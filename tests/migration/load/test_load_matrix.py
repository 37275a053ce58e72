"""Every source into a live module, asked for in every way: plain torch says what must be in it."""

import copy

import pytest
import torch
from files import same_bits
from migration.matrix_modules import (
    NEW_CLASSES,
    OLD_CLASSES,
    UNSAVED_CLASSES,
    example_inputs,
    make_trained_module,
)
from migration.matrix_sources import SOURCES, write_source
from migration.matrix_truth import load_object
from safetensors.torch import load_file

import ckptool
from ckptool.migration.plan.key_operations import RenameKeys
from ckptool.migration.plan.plan_file import Plan

pytestmark = pytest.mark.matrix

CLASSES = {"old": OLD_CLASSES, "mask is a buffer": NEW_CLASSES, "mask not saved": UNSAVED_CLASSES}
ASKED = {
    "bare": {},
    "assign": {"assign": True},
    "lenient": {"strict": False},
    "assign bfloat16": {"assign": True, "dtype": "bfloat16"},
}


@pytest.fixture(params=SOURCES)
def source_name(request) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["", "tied"])
def tied(request) -> bool:
    return request.param


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("asked", ASKED)
def test_the_module_has_the_tensors_of_the_file(source_name, tied, classes, asked):
    path, old, source = (
        write_source(source_name, tied),
        make_trained_module(tied),
        SOURCES[source_name],
    )
    torch.manual_seed(99)
    module = CLASSES[classes][tied]().eval()
    parameters = dict(module.named_parameters())
    report = ckptool.load(module, path, at=".".join(source.at) or None, **ASKED[asked])
    assert report.exit_code == 0
    assert report.verdict.startswith("loaded strictly")
    assert (report.missing, report.unexpected, report.questions) == ((), (), ())
    expected = old.state_dict()
    if classes == "mask is a buffer":
        expected = {**expected, "mask": old.mask}
    found = module.state_dict()
    assert found.keys() == expected.keys()
    dtype = torch.bfloat16 if "bfloat16" in asked else torch.float32
    for key, tensor in expected.items():
        assert same_bits(found[key], tensor.to(dtype) if tensor.is_floating_point() else tensor)
    names = [name for name, _ in module.named_parameters()]
    assert names == [*parameters]  # what was tied is tied
    assert all(
        (parameters[name] is p) != ("assign" in asked) for name, p in module.named_parameters()
    )
    if dtype is torch.float32:
        with torch.no_grad():
            assert same_bits(module(*example_inputs()), old(*example_inputs()))


@pytest.mark.parametrize("asked", ["bare", "lenient"])
def test_a_refused_load_leaves_the_module_as_it_was(source_name, tied, asked):
    path, source = write_source(source_name, tied), SOURCES[source_name]
    module = NEW_CLASSES[tied]().eval()
    module.head = torch.nn.Linear(4, 9, bias=False)
    before = copy.deepcopy(module.state_dict())
    if source.stores_one_name and tied and asked == "lenient":
        report = ckptool.load(module, path, **ASKED[asked])
        # The file has it as embed.weight alone; the constructor builds another head.
        assert set(report.missing) <= {"head.weight", "mask"}
        assert "head.weight" in report.missing
        return
    with pytest.raises(ckptool.LoadError, match="head") as caught:
        ckptool.load(module, path, at=".".join(source.at) or None, **ASKED[asked])
    assert caught.value.report.exit_code == 1
    assert all(same_bits(before[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_module_on_meta_takes_over_the_tensors(source_name, tied, dtype):
    path, source = write_source(source_name, tied), SOURCES[source_name]
    old = make_trained_module(tied)
    with torch.device("meta"):
        module = OLD_CLASSES[tied]().eval()
    at = ".".join(source.at) or None
    report = ckptool.load(module, path, at=at, assign=True, device="cpu", dtype=dtype)
    assert report.exit_code == 0
    for key, tensor in old.state_dict().items():
        is_cast = dtype and tensor.is_floating_point()
        expected = tensor.half() if is_cast else tensor
        found = module.state_dict()[key]
        assert found.device.type == "cpu"
        assert same_bits(found, expected)
    if tied:
        assert module.head.weight is module.embed.weight


def test_an_answer_and_a_plan_lead_to_the_same_module(source_name, tied):
    """The new head has another name: it is asked for, accepted, and the same by a plan."""
    path, source = write_source(source_name, tied), SOURCES[source_name]
    at = ".".join(source.at) or None
    if source.stores_one_name and tied:
        pytest.skip("the file has the head under the name of the embedding alone")
    old = make_trained_module(tied)
    loaded = []
    rename = "rename head.weight=output.weight"
    plan = Plan((RenameKeys(key="head.weight", to="output.weight"),))
    for asked in ({"accept": [rename]}, {"plan": plan}):
        torch.manual_seed(7)
        module = OLD_CLASSES[False]().eval()
        module.output = module.head
        del module.head
        if "plan" in asked and "head.weight" not in read_with_its_library(path, source):
            with pytest.raises(ckptool.LoadError, match="strip-prefix"):  # a plan is exact
                ckptool.load(module, path, at=at, **asked)
            continue
        ckptool.load(module, path, at=at, **asked)
        loaded.append(module.state_dict())
    expected = {key.replace("head.", "output."): tensor for key, tensor in old.state_dict().items()}
    for state in loaded:
        assert state.keys() == expected.keys()
        assert all(same_bits(state[key], tensor) for key, tensor in expected.items())


def test_the_mapping_is_what_torch_reads(source_name, tied):
    path, source = write_source(source_name, tied), SOURCES[source_name]
    expected = read_with_its_library(path, source)
    with ckptool.tensors(path, at=".".join(source.at) or None) as tensors:
        found = dict(tensors)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert same_bits(found[key], tensor)
        assert found[key].stride() == tensor.stride()
        assert found[key].storage_offset() == tensor.storage_offset()
    assert list_ties(found) == list_ties(expected)
    with pytest.raises(ckptool.CkptoolError, match="closed"):
        tensors[next(iter(expected))]


def read_with_its_library(path, source):
    """Return the state_dict that torch or safetensors reads, by key."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.is_dir() and not (path / ".metadata").exists():
        shards = [*path.glob("*.safetensors"), *path.glob("*.bin")]
        load = load_file if shards[0].suffix == ".safetensors" else torch.load
        return {key: tensor for shard in shards for key, tensor in load(shard).items()}
    if path.suffix == ".pt":
        return torch.jit.load(path).state_dict()
    node = load_object(path)
    for key in source.at:
        node = node[key]
    return node.state_dict() if isinstance(node, torch.nn.Module) else node


def list_ties(tensors):
    """Return the groups of keys whose tensors share a storage."""
    groups = {}
    for key, tensor in tensors.items():
        groups.setdefault(tensor.untyped_storage().data_ptr(), set()).add(key)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
