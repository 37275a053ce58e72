"""Words, files, functions and modules -> inputs; what makes no sense is said in one line."""

import pytest
import torch
from safetensors.torch import save_file
from verification import models

from ckptool.errors import UsageError
from ckptool.verification.forward_pass import Inputs
from ckptool.verification.inputs import (
    find_signature_mismatch,
    inputs_from_module,
    parse_inputs,
    random_inputs,
    require_matching_inputs,
)


@pytest.mark.parametrize(
    ("spec", "name", "dtype", "shape"),
    [
        ("float32[2,6,3]", "", torch.float32, (2, 6, 3)),
        ("float32[]", "", torch.float32, ()),
        ("bfloat16[ 2, 3 ]", "", torch.bfloat16, (2, 3)),
        ("float64[0,4]", "", torch.float64, (0, 4)),
        ("complex64[3]", "", torch.complex64, (3,)),
        ("int64[2,8]<1000", "", torch.int64, (2, 8)),
        ("mask=bool[6,6]", "mask", torch.bool, (6, 6)),
        ("input_ids=int64[1,4]<10", "input_ids", torch.int64, (1, 4)),
        ("uint8[3]<256", "", torch.uint8, (3,)),
    ],
)
def test_drawn(spec, name, dtype, shape):
    found = random_inputs([spec])
    tensor = found.kwargs[name] if name else found.args[0]
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)


def test_whole_numbers_stay_below_their_bound():
    (found,) = random_inputs(["int64[1000]<7"]).args
    assert set(found.tolist()) == set(range(7))
    assert set(random_inputs(["int64[1000]"]).args[0].tolist()) == {0, 1}


def test_the_seed_is_fixed_and_no_other_generator_is_touched():
    before = torch.get_rng_state()
    first, second = random_inputs(["float32[5]", "float32[5]"]).args
    again, _ = random_inputs(["float32[5]", "float32[5]"]).args
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "spec",
    ["", "float32", "float32[a]", "float[2", "Tensor[2]", "nn[2]", "float32[2]<3", "int64[2]<0"],
)
def test_words_that_make_no_sense(spec):
    with pytest.raises(UsageError, match="--input"):
        random_inputs([spec])


def test_a_file_gives_named_and_numbered_tensors(tmp_path):
    path = tmp_path / "batch.safetensors"
    tensors = {"1": torch.ones(1), "0": torch.zeros(1), "mask": torch.ones(2)}
    save_file(tensors, path)
    found = random_inputs([str(path)])
    assert [value.item() for value in found.args] == [0.0, 1.0]
    assert list(found.kwargs) == ["mask"]
    with pytest.raises(UsageError, match="contains 3 tensors, not one"):
        random_inputs([f"x={path}"])
    save_file({"a": torch.ones(3)}, path)
    assert random_inputs([f"x={path}"]).kwargs["x"].shape == (3,)


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(UsageError, match=r"none\.safetensors"):
        random_inputs([str(path)])
    path.write_bytes(b"no tensors")
    with pytest.raises(UsageError, match=r"none\.safetensors"):
        random_inputs([str(path)])


@pytest.mark.parametrize(
    ("value", "args", "kwargs"),
    [
        (torch.ones(1), 1, set()),
        ((torch.ones(1), torch.ones(1)), 2, set()),
        ([torch.ones(1)], 1, set()),
        ({"x": torch.ones(1)}, 0, {"x"}),
        (((torch.ones(1),), {"x": torch.ones(1)}), 1, {"x"}),
        ("verification.models:batch", 0, {"x"}),
        (("verification.models:batch",), 0, {"x"}),
    ],
)
def test_values_and_functions(value, args, kwargs):
    found = parse_inputs(value)
    assert (len(found.args), set(found.kwargs)) == (args, kwargs)


@pytest.mark.parametrize(
    "target", ["verification.models:failing", "nothing:here", "verification.models:none"]
)
def test_functions_that_fail(target):
    with pytest.raises(UsageError, match=f"--inputs {target}"):
        parse_inputs(target)


@pytest.mark.parametrize("spec", ["ids:0..31:2x8", "ids:0..31", "2x8"])
def test_a_spec_of_another_form_is_answered_with_the_right_form(spec):
    with pytest.raises(UsageError) as caught:
        parse_inputs((spec,))
    assert str(caught.value).startswith(f"--input {spec}: expected a dtype and a shape")


def test_nothing_given():
    assert parse_inputs(None) is None
    assert parse_inputs(()) is None


@pytest.mark.parametrize("name", ["Plain", "Lightning", "Transformers"])
def test_modules_say_what_they_take(name):
    module = getattr(models, name)()
    assert find_signature_mismatch(module, inputs_from_module(module)) == ""


def test_modules_that_do_not_say():
    assert inputs_from_module(models.Silent()).startswith(
        "no input: pass --input or --inputs, or define example_inputs() on the module"
    )


def test_what_forward_does_not_take():
    with pytest.raises(UsageError, match=r"forward\(x\) cannot be called with"):
        require_matching_inputs(models.Plain(), Inputs((), {"y": 1}, "--input"))
