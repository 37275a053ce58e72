"""A file that is the state of one submodule, and a module that is one part of the file."""

import pytest
import torch
from torch import nn

from ckptool import api
from ckptool.errors import PlanError, UsageError


def block(width, depth):
    layers = [
        nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)) for _ in range(depth)
    ]
    return nn.Sequential(*layers)


class Detector(nn.Module):
    """One net of a cascade."""

    def __init__(self, width, heads=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3)
        self.prelu1 = nn.PReLU(width)
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(heads))


class Cascade(nn.Module):
    def __init__(self):
        super().__init__()
        self.pnet, self.rnet, self.onet = Detector(10), Detector(28, 2), Detector(32, 3)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Detector(10), Detector(10), Detector(10)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.fc = block(4, 3), nn.Linear(4, 10)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"text": block(4, 2), "image": Detector(10)})
        self.scale = nn.Parameter(torch.ones(()))


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = block(4, 3), block(5, 4)


class TiedHead(nn.Module):
    """Everything beside `body` is tied to it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.body[0].weight


def save(tmp_path, state, name="file.pth"):
    path = tmp_path / name
    torch.save(state, path)
    return path


def loads_strictly(module, state):
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError:
        return False
    return True


def part_findings(report):
    return [f for f in report.findings if f.code in ("CK224", "CK225")]


SUBMODULES = [
    (Cascade, "pnet", 3),
    (Cascade, "onet", 3),
    (Classifier, "backbone", 2),
    (Classifier, "fc", 2),
    (Nested, "model.image", 2),
    (Nested, "model.text", 2),
    (AutoEncoder, "decoder", 2),
]


@pytest.mark.parametrize(("module_class", "path", "count"), SUBMODULES)
def test_the_state_of_a_submodule_is_one_finding(tmp_path, module_class, path, count):
    state = module_class().get_submodule(path).state_dict()
    assert not loads_strictly(module_class(), state)
    assert loads_strictly(module_class().get_submodule(path), state)
    report = api.diff(save(tmp_path, state), module=module_class())
    (finding,) = report.findings
    assert finding.code == "CK224"
    assert finding.level == "error"
    assert f"the file is the state of `{path}`, one of {count} submodules" in finding.message
    assert f"--into {path}" in finding.fix
    assert report.exit_code == 1
    assert {verdict.code for verdict in report.verdicts} == {"CK224"}


@pytest.mark.parametrize(("module_class", "path", "count"), SUBMODULES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_into_migrates_it_and_torch_loads_it(tmp_path, module_class, path, count, suffix):
    state = module_class().get_submodule(path).state_dict()
    target = tmp_path / f"new{suffix}"
    report = api.migrate(save(tmp_path, state), target, module=module_class(), into=path)
    assert report.verdict == f"migrated: loads strictly into `{path}`"
    assert [(step.op, step.after) for step in report.steps] == [("add-prefix", f"{path}.*")]
    new_state = torch.load(target) if suffix == ".pth" else _load_safetensors(target)
    module = module_class()
    result = module.load_state_dict(new_state, strict=False)
    assert not result.unexpected_keys
    assert not any(key.startswith(f"{path}.") for key in result.missing_keys)
    loaded = module.get_submodule(path).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert len([key for key in module.state_dict() if key.startswith(f"{path}.")]) == len(state)
    again = api.diff(target, module=module_class(), into=path)
    assert again.verdict == "loads strictly"


def _load_safetensors(path):
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"net.inner.{key}": value for key, value in state.items()},
        lambda state: {"model": state, "epoch": 3},
    ],
)
def test_the_state_may_be_wrapped(tmp_path, wrap):
    state = Detector(10).state_dict()
    path = save(tmp_path, wrap(state))
    report = api.diff(path, module=Cascade())
    assert [f.key for f in part_findings(report)] == ["pnet"]
    assert not any(f.code in ("CK201", "CK204", "CK211") for f in report.findings)
    api.migrate(path, tmp_path / "n.safetensors", module=Cascade(), into="pnet", drop_extra=True)
    new_state = _load_safetensors(tmp_path / "n.safetensors")
    assert new_state.keys() == {f"pnet.{key}" for key in state}


def test_equal_towers_are_named_and_asked_about(tmp_path):
    state = Detector(10).state_dict()
    path = save(tmp_path, state)
    fitting = [name for name, part in Towers().named_children() if loads_strictly(part, state)]
    assert fitting == ["first", "second", "third"]
    (finding,) = api.diff(path, module=Towers()).findings
    assert "`first`, `second`, `third` fit equally" in finding.message
    assert "--into NAME" in finding.fix
    with pytest.raises(PlanError, match=r"fit equally .*: say which one with --into NAME"):
        api.migrate(path, tmp_path / "n.pth", module=Towers())
    report = api.migrate(path, tmp_path / "n.pth", module=Towers(), into="second")
    assert report.verdict == "migrated: loads strictly into `second`"


def test_without_into_migrate_asks(tmp_path):
    path = save(tmp_path, Detector(10).state_dict())
    with pytest.raises(PlanError) as caught:
        api.migrate(path, tmp_path / "n.pth", module=Cascade())
    assert "--into pnet if only that is intended" in str(caught.value)
    assert str(caught.value).count("CK2") == 1
    assert not (tmp_path / "n.pth").exists()


def test_the_rest_can_be_given_instead(tmp_path):
    state = Classifier().backbone.state_dict()
    donor = save(tmp_path, Classifier().state_dict(), "donor.pth")
    inject = {key: f"file:{donor}#{key}" for key in ("fc.weight", "fc.bias")}
    report = api.migrate(
        save(tmp_path, state), tmp_path / "n.pth", module=Classifier(), inject=inject
    )
    assert report.verdict == "migrated: loads strictly"
    assert loads_strictly(Classifier(), torch.load(tmp_path / "n.pth"))


def test_most_keys_are_enough_and_the_others_are_named(tmp_path):
    state = Detector(10).state_dict() | {"total_ops": torch.zeros(1)}
    report = api.diff(save(tmp_path, state), module=Cascade())
    assert not loads_strictly(Cascade().pnet, state)
    messages = {f.code: f.message for f in report.findings}
    assert messages.keys() == {"CK224", "CK204"}
    assert "5 of its 6 keys match" in messages["CK224"]
    assert "`total_ops`" in messages["CK204"]


def test_what_is_tied_to_the_part_needs_no_finding(tmp_path):
    state = TiedHead().body.state_dict()
    report = api.diff(save(tmp_path, state), module=TiedHead())
    assert part_findings(report) == []
    migrated = api.migrate(tmp_path / "file.pth", tmp_path / "n.pth", module=TiedHead())
    assert migrated.verdict == "migrated: loads strictly"
    assert loads_strictly(TiedHead(), torch.load(tmp_path / "n.pth"))


@pytest.mark.parametrize(
    "state",
    [
        {f"pnet.{key}": value for key, value in Detector(10).state_dict().items()},
        Detector(11).state_dict(),
        {"conv1.weight": torch.ones(10, 3, 3, 3)},
        {f"module.{key}": value for key, value in Cascade().state_dict().items()},
    ],
)
def test_near_misses(tmp_path, state):
    assert part_findings(api.diff(save(tmp_path, state), module=Cascade())) == []


@pytest.mark.parametrize("nest", [False, True])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_module_that_is_one_part_of_the_file(tmp_path, name, nest):
    whole = AutoEncoder().state_dict()
    path = save(tmp_path, {"state": whole, "epoch": 1} if nest else whole)
    module = getattr(AutoEncoder(), name)
    assert not loads_strictly(module, whole)
    report = api.diff(path, module=module)
    (finding,) = [f for f in report.findings if f.code not in ("CK309", "CK212", "CK216")]
    assert f"the module is `{name}` of the file, one of 2 parts" in finding.message
    at = f"state.{name}" if nest else name
    assert f"--at {at}" in finding.fix
    assert api.diff(path, module=module, at=at).verdict == "loads strictly"
    with pytest.raises(PlanError, match=f"--at {at} takes it"):
        api.migrate(path, tmp_path / "n.pth", module=module)
    migrated = api.migrate(path, tmp_path / "n.pth", module=module, at=at, drop_extra=True)
    assert migrated.verdict == "migrated: loads strictly"
    new_state = torch.load(tmp_path / "n.pth")
    assert loads_strictly(module, new_state)
    assert all(torch.equal(new_state[key], whole[f"{name}.{key}"]) for key in new_state)


def test_two_parts_that_fit_equally_are_asked_about(tmp_path):
    state = {
        f"{name}.{key}": v for name in ("net", "ema") for key, v in Detector(4).state_dict().items()
    }
    path = save(tmp_path, state)
    (finding,) = api.diff(path, module=Detector(4)).findings
    assert "`ema`, `net` fit equally" in finding.message
    with pytest.raises(PlanError, match="say which one with --at NAME"):
        api.migrate(path, tmp_path / "n.pth", module=Detector(4))
    api.migrate(path, tmp_path / "n.pth", module=Detector(4), at="ema")
    assert loads_strictly(Detector(4), torch.load(tmp_path / "n.pth"))


def test_a_loss_or_a_stray_key_beside_a_prefix_is_no_other_part(tmp_path):
    state = {f"model.{key}": value for key, value in Detector(4).state_dict().items()}
    for extra in ("criterion.weight", "logit_scale"):
        report = api.diff(save(tmp_path, state | {extra: torch.ones(3)}), module=Detector(4))
        assert part_findings(report) == []
        assert "CK209" in {f.code for f in report.findings}


def test_into_needs_a_submodule_and_a_module(tmp_path):
    path = save(tmp_path, Detector(10).state_dict())
    with pytest.raises(UsageError, match="did you mean `pnet`"):
        api.diff(path, module=Cascade(), into="pnt")
    with pytest.raises(UsageError, match="there are `onet`, `pnet`, `rnet`"):
        api.migrate(path, tmp_path / "n.pth", module=Cascade(), into="qqqqq")
    with pytest.raises(UsageError, match="--into selects a submodule"):
        api.migrate(path, tmp_path / "n.pth", into="pnet")
    with pytest.raises(UsageError, match="--into"):
        api.diff(path, path, into="pnet")


def test_into_another_submodule_does_not_load(tmp_path):
    state = Detector(10).state_dict()
    report = api.diff(save(tmp_path, state), module=Cascade(), into="rnet")
    assert report.exit_code == 1
    assert not loads_strictly(Cascade().rnet, state)
    with pytest.raises(PlanError):
        api.migrate(tmp_path / "file.pth", tmp_path / "n.pth", module=Cascade(), into="rnet")


def test_into_takes_its_part_of_a_whole_file(tmp_path):
    whole = Cascade().state_dict()
    report = api.migrate(save(tmp_path, whole), tmp_path / "n.pth", module=Cascade(), into="pnet")
    assert report.verdict == "migrated: loads strictly into `pnet`"
    assert torch.load(tmp_path / "n.pth").keys() == {k for k in whole if k.startswith("pnet.")}


def test_many_equal_layers_take_no_long_time(tmp_path):
    module = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3000)))
    (finding,) = api.diff(save(tmp_path, nn.Linear(2, 2).state_dict()), module=module).findings
    assert "`0.0`, `1.0`, `2.0`, `3.0` and 2996 more fit equally" in finding.message


def test_the_command_takes_into_and_at(run_command, tmp_path):
    path, target = save(tmp_path, nn.Linear(4, 8).state_dict()), tmp_path / "new.pth"
    layer = ("-m", "torch.nn:TransformerEncoderLayer", "-k", "d_model=4", "-k", "nhead=1")
    layer = (*layer, "-k", "dim_feedforward=8")
    assert run_command("diff", str(path), *layer).code == 1
    assert run_command("diff", str(path), *layer, "--into", "linear1").code == 0
    assert run_command("migrate", str(path), "-o", str(target), *layer).code == 2
    into = ("--into", "linear1")
    assert run_command("migrate", str(path), "-o", str(target), *layer, *into).code == 0
    linear = ("-m", "torch.nn:Linear", "-k", "in_features=4", "-k", "out_features=8")
    assert run_command("diff", str(target), *linear, "--at", "linear1").code == 0
