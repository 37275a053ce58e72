"""ckptool.load and ckptool.tensors: what is put into a module, and what of it is undone."""

import copy
import os
import re
import zipfile

import pytest
import torch
from files import same_bits, save
from safetensors.torch import save_file
from torch import nn

import ckptool


class Old(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 3), nn.Linear(3, 7)


class New(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 7)


class Stubborn(nn.Linear):
    """Writes into its own tensors and then raises."""

    steps = 0

    def _load_from_state_dict(self, state_dict, prefix, *others):
        self.steps = 1
        with torch.no_grad():
            self.weight.zero_()
        if state_dict[f"{prefix}weight"].isfinite().all():
            raise ValueError("not today")
        super()._load_from_state_dict(state_dict, prefix, *others)


class DrawsHead(Old):
    """Initialises its head again after each load, on purpose."""

    def load_state_dict(self, state_dict, strict=True, assign=False):
        kept = {key: value for key, value in state_dict.items() if not key.startswith("head.")}
        keys = super().load_state_dict(kept, strict=False, assign=assign)
        self.head.reset_parameters()
        return keys


def bits(module):
    return copy.deepcopy(module.state_dict())


def same_state(one, other):
    return one.keys() == other.keys() and all(same_bits(one[k], other[k]) for k in one)


def refusal(*args, **kwargs) -> ckptool.LoadError:
    with pytest.raises(ckptool.LoadError) as caught:
        ckptool.load(*args, **kwargs)
    return caught.value


def test_questions_are_answered_as_the_error_says(tmp_path):
    old, module = Old(), New()
    path, before = save(tmp_path / "old.pth", old.state_dict()), bits(module)
    error = refusal(module, path)
    assert same_state(module.state_dict(), before)
    assert error.report.questions
    (answer,) = re.findall(r"accept=(\[.*?\])", str(error))
    report = ckptool.load(module, path, accept=eval(answer))
    assert report.verdict == "loaded strictly after 1 step"
    assert same_bits(module.body.weight, old.encoder.weight)
    assert same_bits(module.head.bias, old.head.bias)
    other = New()
    assert ckptool.load(other, path, accept=["renames"]).steps[0].assumption
    assert same_state(other.state_dict(), module.state_dict())


def test_the_text_of_the_error_is_the_short_form_of_its_report(tmp_path):
    path = save(tmp_path / "old.pth", Old().state_dict())
    error = refusal(New(), path)
    first, *questions = error.lines
    assert first == f"{path}: {error.report.verdict}"
    assert tuple(questions) == error.report.questions
    assert error.report.exit_code == 1
    assert ckptool.text(error.report).startswith(error.report.verdict)
    assert '"command": "load"' in ckptool.text(error.report, "json")


def test_keys_without_values_keep_those_of_the_module(tmp_path):
    old, module = Old(), Old()
    state = {key: tensor for key, tensor in old.state_dict().items() if "head" not in key}
    path, head = save(tmp_path / "old.pth", state), module.head.weight.clone()
    error = refusal(module, path)
    (answer,) = re.findall(r"accept=(\[.*?\])", str(error))
    ckptool.load(module, path, accept=eval(answer))
    assert same_bits(module.encoder.weight, old.encoder.weight)
    assert same_bits(module.head.weight, head)


def test_a_head_drawn_again_on_purpose_is_loaded_as_the_error_says(tmp_path):
    old, module = Old(), DrawsHead()
    path, drawn = save(tmp_path / "old.pth", old.state_dict()), module.head.weight.clone()
    error = refusal(module, path)
    assert "CK222" in str(error)
    assert same_bits(module.head.weight, drawn)
    (answer,) = re.findall(r"accept=(\[.*?\])", str(error))
    ckptool.load(module, path, accept=eval(answer))
    assert same_bits(module.encoder.weight, old.encoder.weight)
    assert not same_bits(module.head.weight, drawn)
    assert not same_bits(module.head.weight, old.head.weight)


def test_a_head_of_another_shape_is_replaced_as_the_error_says(tmp_path):
    old, module = Old(), Old()
    module.head = nn.Linear(3, 5)
    path, head = save(tmp_path / "old.pth", old.state_dict()), module.head.weight.clone()
    named = re.findall(r"accept=(\[.*?\])", str(refusal(module, path)))
    ckptool.load(module, path, accept=[answer for text in named for answer in eval(text)])
    assert same_bits(module.encoder.weight, old.encoder.weight)
    assert same_bits(module.head.weight, head)


def test_lenient_loading_is_that_of_torch(tmp_path):
    old, module, expected = Old(), New(), New()
    expected.load_state_dict(module.state_dict())
    path = save(tmp_path / "old.pth", old.state_dict())
    report = ckptool.load(module, path, strict=False)
    keys = expected.load_state_dict(old.state_dict(), strict=False)
    assert (list(report.missing), list(report.unexpected)) == (
        keys.missing_keys, keys.unexpected_keys,
    )  # fmt: skip
    assert same_state(module.state_dict(), expected.state_dict())
    assert report.verdict == "loaded in part: 2 missing, 2 unexpected"
    assert report.exit_code == 1
    assert any("accept=['rename encoder.*=body.*']" in question for question in report.questions)


@pytest.mark.parametrize("assign", [False, True])
def test_what_own_code_changed_is_put_back_where_it_raises(tmp_path, assign):
    module = nn.Sequential(nn.Linear(3, 3), Stubborn(3, 3))
    path, before = (
        save(tmp_path / "model.pth", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict()),
        bits(module),
    )
    parameters = [id(parameter) for parameter in module.parameters()]
    error = refusal(module, path, assign=assign, strict=False)
    assert "not today" in str(error)
    assert same_state(module.state_dict(), before)
    assert parameters == [id(parameter) for parameter in module.parameters()]
    assert module[1].steps == 0


def test_a_module_on_meta_takes_tensors_over(tmp_path):
    old = Old()
    path = save(tmp_path / "old.pth", old.state_dict())
    with torch.device("meta"):
        module = Old()
    with pytest.raises(ckptool.CkptoolError, match="assign=True"):
        ckptool.load(module, path)
    ckptool.load(module, path, assign=True)
    assert same_state(module.state_dict(), old.state_dict())
    with torch.no_grad():
        module.encoder.weight.zero_()  # the file stays as it is
    assert same_bits(torch.load(path)["encoder.weight"], old.encoder.weight)


@pytest.mark.parametrize("how", ["dtype", "device"])
def test_dtype_and_device_are_those_of_the_tensors_that_are_assigned(tmp_path, how):
    old, module = Old(), Old()
    path = save(tmp_path / "old.pth", old.state_dict())
    asked = {"dtype": torch.float64} if how == "dtype" else {"device": "meta"}
    before = bits(module)
    with pytest.raises(ckptool.CkptoolError, match="assign=True"):
        ckptool.load(module, path, **asked)
    assert same_state(module.state_dict(), before)
    ckptool.load(module, path, assign=True, **asked)
    found = module.encoder.weight
    assert found.dtype == (torch.float64 if how == "dtype" else torch.float32)
    assert found.device.type == ("meta" if how == "device" else "cpu")
    if how == "dtype":
        assert torch.equal(found, old.encoder.weight.double())


def test_what_is_asked_for_without_assign_may_be_what_is(tmp_path):
    path = save(tmp_path / "old.pth", Old().state_dict())
    assert ckptool.load(Old(), path, device="cpu", dtype="float32").exit_code == 0


def test_the_random_state_and_the_file_are_not_touched(tmp_path):
    path = save(tmp_path / "old.pth", Old().state_dict())
    fitting, other = Old(), New()
    random_state, content = torch.get_rng_state(), path.read_bytes()
    ckptool.load(fitting, path)
    refusal(other, path)
    assert torch.equal(random_state, torch.get_rng_state())
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["old.pth"]


def test_nothing_in_a_file_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    state = {**Old().state_dict()}
    path = save(tmp_path / "old.pth", {"model": state, "hook": Payload()})
    module = Old()
    ckptool.load(module, path)
    assert same_state(module.state_dict(), state)
    assert not (tmp_path / "made").exists()


def test_extra_state_is_loaded(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": self.scale}

        def set_extra_state(self, state):
            self.scale = state["scale"]

    old, module = Extra(2, 2), Extra(2, 2)
    old.scale, module.scale = 4, 1
    path = save(tmp_path / "old.pth", old.state_dict())
    assert ckptool.load(module, path).exit_code == 0
    assert (module.scale, same_bits(module.weight, old.weight)) == (4, True)


def test_a_repacked_archive_is_loaded(tmp_path):
    path = save(tmp_path / "old.pth", Old().state_dict())
    repacked = tmp_path / "repacked.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    module, expected = Old(), torch.load(path)
    ckptool.load(module, repacked)
    assert same_state(module.state_dict(), expected)
    with ckptool.tensors(repacked) as tensors:
        assert same_state(dict(tensors), expected)


def test_a_plan_is_applied(tmp_path):
    path, plan = save(tmp_path / "old.pth", Old().state_dict()), tmp_path / "plan.toml"
    step = 'op = "rename"\nkey = "encoder"\nto = "body"\nhow = "prefix"\n'
    plan.write_text(f"schema = 1\n[[ops]]\n{step}")
    module = New()
    assert ckptool.load(module, path, plan=plan).verdict == "loaded strictly after 1 step"
    assert same_bits(module.body.weight, torch.load(path)["encoder.weight"])


WRONG = {
    "a class": (lambda p: ckptool.load(Old, p), "is a class"),
    "a name": (lambda p: ckptool.load("net:Net", p), "not a str"),
    "a state_dict": (lambda p: ckptool.load(Old().state_dict(), p), "not an OrderedDict"),
    "no path": (lambda p: ckptool.load(Old(), Old().state_dict()), "an OrderedDict was given"),
    "no file": (lambda p: ckptool.load(Old(), p.with_name("none.pth")), "no such file"),
    "no state": (lambda p: ckptool.load(Old(), p, at="ema"), "no state at"),
    "text for a list": (lambda p: ckptool.load(Old(), p, accept="renames"), "is a list"),
    "no answer": (lambda p: ckptool.load(Old(), p, accept=["yes"]), "drop KEY"),
    "no rule": (lambda p: ckptool.load(Old(), p, accept=["CK999"]), "no rule"),
    "no device": (lambda p: ckptool.load(Old(), p, device="gpu"), "no such device"),
    "no float": (lambda p: ckptool.load(Old(), p, dtype="int8"), "floating-point"),
    "tensors of a module": (lambda p: ckptool.tensors(Old()), "an Old was given"),
    "tensors of nothing": (lambda p: ckptool.tensors(p, at="ema"), "no state at"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrongly_given_ends_in_one_line(tmp_path, wrong):
    call, text = WRONG[wrong]
    path = save(tmp_path / "old.pth", Old().state_dict())
    with pytest.raises(ckptool.CkptoolError, match=text) as caught:
        call(path)
    assert "\n" not in str(caught.value)


def test_tensors_are_made_when_they_are_asked_for(tmp_path):
    path = save(tmp_path / "old.pth", Old().state_dict())
    tensors = ckptool.tensors(path)
    assert (len(tensors), "head.bias" in tensors, "tail" in tensors) == (4, True, False)
    one, two = tensors["head.bias"], tensors["head.bias"]
    assert one is not two
    one.zero_()
    assert two.eq(0).all()  # one memory
    assert not torch.load(path)["head.bias"].eq(0).all()
    with pytest.raises(TypeError):
        tensors["head.bias"] = one
    with pytest.raises(KeyError):
        tensors["tail"]
    tensors.close()
    assert one.eq(0).all()
    with pytest.raises(ckptool.CkptoolError, match="was closed"):
        tensors["head.bias"]


def test_a_file_that_is_written_anew_is_noticed(tmp_path):
    path = save(tmp_path / "old.pth", Old().state_dict())
    with ckptool.tensors(path) as tensors:
        save(path, New().state_dict())
        with pytest.raises(ckptool.CkptoolError, match="was changed after it was opened"):
            tensors["head.bias"]


KINDS = {
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "view": torch.arange(12.0)[3:7],
    "expanded": torch.ones(1).expand(5),
    "sparse": torch.eye(3).to_sparse(),
    "conj": torch.tensor([1 + 2j]).conj(),
    "empty": torch.empty(0, 3),
    "scalar": torch.ones(()),
    "bool": torch.tensor([True, False]),
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_kinds_of_tensors_are_what_torch_reads(tmp_path, kind, legacy):
    if legacy and kind == "float8":
        pytest.skip("torch does not read what it writes")
    path = tmp_path / "one.pth"
    torch.save({"one": KINDS[kind]}, path, _use_new_zipfile_serialization=not legacy)
    expected = torch.load(path)["one"]
    with ckptool.tensors(path) as tensors:
        found = tensors["one"]
    assert (found.dtype, found.shape, found.layout) == (
        expected.dtype, expected.shape, expected.layout,
    )  # fmt: skip
    if found.layout is torch.strided:
        assert found.stride() == expected.stride()
    values, wanted = (
        t.to_dense() if t.is_sparse else t.int_repr() if t.is_quantized else t.resolve_conj()
        for t in (found, expected)
    )
    assert torch.equal(
        values.float() if kind == "float8" else values,
        wanted.float() if kind == "float8" else wanted,
    )


def test_a_misaligned_tensor_is_copied(tmp_path):
    content = {"one": torch.ones(1, dtype=torch.uint8), "two": torch.arange(3.0)}
    path = tmp_path / "model.safetensors"
    save_file(content, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + length].rstrip() + b" "
    head += b" " * (1 - (8 + len(head)) % 4 % 2)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    with ckptool.tensors(path) as tensors:
        assert all(torch.equal(tensors[key], tensor) for key, tensor in content.items())


def test_what_torchs_upgrade_code_fills_in_is_what_the_live_module_has(tmp_path):
    """A file of before num_batches_tracked leaves the count of a live BatchNorm as it is."""

    def make():
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        module[1].num_batches_tracked.fill_(7)
        return module

    state = {k: v for k, v in make().state_dict().items() if "num_batches" not in k}
    path = tmp_path / "old.pth"
    torch.save(state, path)
    expected, module = make(), make()
    expected.load_state_dict(torch.load(path))
    ckptool.load(module, path)
    assert expected[1].num_batches_tracked == 7
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


@pytest.mark.parametrize("takes_strict", [False, True])
def test_an_override_gets_the_arguments_that_it_takes(takes_strict, tmp_path):
    class TakesStrict(nn.Linear):
        def load_state_dict(self, state_dict, strict=True):
            return super().load_state_dict(state_dict, strict)

    class TakesTheStateAlone(nn.Linear):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)

    cls = TakesStrict if takes_strict else TakesTheStateAlone
    path, module = tmp_path / "model.pth", cls(3, 3)
    torch.save(nn.Linear(3, 3).state_dict(), path)
    report = ckptool.load(module, path)
    assert report.verdict.startswith("loaded strictly")
    assert torch.equal(module.weight, torch.load(path)["weight"])
