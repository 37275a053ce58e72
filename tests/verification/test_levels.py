"""Each level passes, fails, is skipped or inconclusive where it must, and says why."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from verification import models
from verification.device_checks import statuses

from ckptool import api
from ckptool.errors import ModuleError, ReadError, UsageError

X = ("float32[2,4]",)


def saved(tmp_path, name="Plain", content=None, suffix=".pth", **kwargs):
    torch.manual_seed(5)
    content = content or getattr(models, name)(**kwargs).state_dict()
    path = tmp_path / f"{name}{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    return path


def verify(path, name, **options):
    return api.verify(path, module=f"verification.models:{name}", device="simulated", **options)


def level(report, name):
    return next(one for one in report.levels if one.level == name)


PASSED = {
    "load": "passed",
    "device": "passed",
    "forward": "passed",
    "equality": "skipped",
    "round trip": "passed",
    "persistence": "passed",
}


@pytest.mark.parametrize(
    ("name", "otherwise"),
    [
        ("Plain", {}),
        ("Lightning", {}),
        ("Transformers", {}),
        ("Tied", {"device": "skipped", "forward": "skipped", "round trip": "skipped"}),
        ("Silent", {"device": "skipped", "forward": "skipped", "round trip": "skipped"}),
        ("TwoMasks", {"device": "failed", "forward": "failed", "persistence": "failed"}),
        ("RandomTable", {"round trip": "failed", "persistence": "failed"}),
        ("Tables", {"persistence": "failed"}),
        ("OnlyOnCuda", {"device": "inconclusive", "forward": "inconclusive"}),
        (
            "Raises",
            {"device": "inconclusive", "forward": "failed", "round trip": "inconclusive"},
        ),
        ("Unsteady", {"round trip": "inconclusive"}),
        ("WithExtra", {}),
    ],
)
def test_levels(tmp_path, name, otherwise):
    report = verify(saved(tmp_path, name), name)
    assert statuses(report) == {**PASSED, **otherwise}
    found = statuses(report).values()
    is_unproved = "inconclusive" in found or statuses(report)["forward"] == "skipped"
    assert report.exit_code == (1 if "failed" in found else 2 if is_unproved else 0)
    for one in report.levels:
        assert bool(one.reason) == (one.status != "passed")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_container_gives_the_same(tmp_path, suffix):
    report = verify(saved(tmp_path, suffix=suffix), "Plain")
    assert statuses(report) == PASSED
    assert report.verdict.startswith("verified on simulated cuda:0: load, device, forward")


def test_the_simulated_device_is_never_taken_for_a_real_one(tmp_path):
    report = verify(saved(tmp_path), "Plain")
    assert [s.what for s in report.skipped] == ["a real CUDA device"]


def test_every_clash_of_one_pass_is_reported(tmp_path):
    report = verify(saved(tmp_path, "TwoMasks"), "TwoMasks")
    assert [clash.attribute for clash in report.clashes] == ["first", "parts['second']"]
    for clash in report.clashes:
        assert clash.devices == ("cpu", "cuda:0")
        assert "tests/verification/models.py:" in clash.where
    found = [finding for finding in report.findings if finding.code == "CK110"]
    assert [finding.key for finding in found] == ["first", "parts['second']"]
    assert "aten.mul" in found[0].message
    assert "register_buffer" in found[0].fix


# load ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"body.weight": torch.ones(4, 4), "body.bias": torch.ones(4)}, "1 missing (scale)"),
        ({**models.Plain().state_dict(), "old": torch.ones(1)}, "1 unexpected (old)"),
        ({**models.Plain().state_dict(), "scale": torch.ones(5)}, "1 shape mismatch (scale)"),
        (
            {f"module.{key}": value for key, value in models.Plain().state_dict().items()},
            "3 missing (body.bias, body.weight, scale)",
        ),
    ],
)
def test_what_does_not_load_strictly_fails_and_the_rest_is_checked(tmp_path, content, reason):
    report = verify(saved(tmp_path, content=content), "Plain")
    assert reason in level(report, "load").reason
    assert statuses(report) == {**PASSED, "load": "failed"}


def test_a_module_may_upgrade_old_files_itself(tmp_path):
    state = models.Plain().state_dict()
    state["gain"] = state.pop("scale")
    assert statuses(verify(saved(tmp_path, content=state), "Renaming")) == PASSED


def test_state_at_a_place_of_a_training_checkpoint(tmp_path):
    content = {"epoch": 3, "model": models.Plain().state_dict()}
    report = verify(saved(tmp_path, content=content), "Plain")
    assert statuses(report) == PASSED
    assert report.at == "model"


def test_what_has_no_value_after_a_meta_build(tmp_path):
    report = verify(saved(tmp_path, "Tables"), "Tables")
    empty = {finding.key for finding in report.findings if finding.code == "CK701"}
    assert empty == {"inv_freq", "plain", "listed[0]", "view"}


def test_ties_that_come_apart(tmp_path):
    report = verify(saved(tmp_path, "Tied"), "Tied", inputs=X)
    (found,) = [finding for finding in report.findings if finding.code == "CK702"]
    assert (found.key, found.facts["others"]) == ("encoder.weight", "`decoder.weight`")
    assert statuses(report) == PASSED


# equality -----------------------------------------------------------------------------------------


def test_a_migrated_file_computes_what_the_old_one_did(tmp_path):
    old = saved(tmp_path, "WithoutScale")
    state = {**torch.load(old), "scale": torch.full((4,), 2.0)}
    new = saved(tmp_path, content=state, suffix=".safetensors")
    report = verify(new, "Plain", old=old, old_module="verification.models:WithoutScale")
    assert level(report, "equality").status == "passed"
    assert "cpu: bit for bit, largest difference: 0 absolute, 0 relative" in (
        level(report, "equality").details
    )


def test_another_computation_is_told_with_its_size(tmp_path):
    path = saved(tmp_path)
    report = verify(path, "Other", old=path, old_module="verification.models:Plain")
    assert level(report, "equality").status == "failed"
    assert "0.001 absolute" in level(report, "equality").reason
    assert report.exit_code == 1


def test_old_and_new_checkpoints_of_one_module(tmp_path):
    old = saved(tmp_path, content=models.Plain().state_dict(), suffix=".safetensors")
    state = {key: value * 2 for key, value in models.Plain().state_dict().items()}
    report = verify(saved(tmp_path, content=state), "Plain", old=old)
    assert level(report, "equality").status == "failed"


def test_an_old_file_that_does_not_load_proves_nothing(tmp_path):
    old = saved(tmp_path, "WithoutScale")
    report = verify(saved(tmp_path), "Plain", old=old)
    assert level(report, "equality").status == "inconclusive"


# round trip and persistence -------------------------------------------------------------------


def test_a_round_trip_that_gives_another_model(tmp_path):
    report = verify(saved(tmp_path, "RandomTable"), "RandomTable")
    (found,) = [finding for finding in report.findings if finding.code == "CK113"]
    assert "saved and loaded into a new instance," in found.message
    assert found.level == "error"


def test_what_does_not_survive_is_named(tmp_path):
    report = verify(saved(tmp_path, "Tables"), "Tables")
    assert report.lost == ("plain", "listed[0]", "mean")
    assert level(report, "persistence").details == (
        "not saved, as registered, and recreated by the constructor: `inv_freq`",
    )


# devices and inputs -------------------------------------------------------------------------------


def test_on_the_cpu_nothing_is_moved(tmp_path):
    report = api.verify(saved(tmp_path), module="verification.models:Plain", device="cpu")
    assert statuses(report) == {**PASSED, "device": "skipped"}
    assert report.device == "cpu"


def test_another_index_of_the_simulated_device(tmp_path):
    path = saved(tmp_path, "TwoMasks")
    report = api.verify(path, module="verification.models:TwoMasks", device="simulated:1")
    assert {clash.devices for clash in report.clashes} == {("cpu", "cuda:1")}


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "simulated:x", "mps"])
def test_there_is_no_such_device(tmp_path, device):
    with pytest.raises(UsageError, match="expected auto, cuda, cuda:1, simulated or cpu"):
        api.verify(saved(tmp_path), module="verification.models:Plain", device=device)


def test_a_device_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="no CUDA device is available; use --device simulated"):
        api.verify(saved(tmp_path), module="verification.models:Plain", device="cuda")


def test_inputs_that_forward_does_not_take(tmp_path):
    with pytest.raises(UsageError, match="cannot be called with --input"):
        verify(saved(tmp_path), "Plain", inputs=("y=float32[2,4]",))


def test_inputs_of_the_configuration(tmp_path, monkeypatch):
    path = saved(tmp_path, "Silent")
    (tmp_path / "ckptool.toml").write_text(
        '[[models]]\npath = "*.pth"\nmodule = "verification.models:Silent"\n'
        'inputs = ["float32[7,4]"]\n'
    )
    monkeypatch.chdir(tmp_path)
    report = api.verify(path, device="simulated")
    assert level(report, "forward").details[0] == "output: float32 [7, 4]"


@pytest.mark.parametrize(
    "options",
    [{}, {"kwargs": {"size": 4}}, {"fresh": models.Plain}],
    ids=["guess", "kwargs", "fresh"],
)
def test_a_live_module_is_built_again_as_it_was_given(options, tmp_path):
    report = api.verify(saved(tmp_path), module=models.Plain(), device="simulated", **options)
    assert statuses(report) == PASSED
    assert not [entry for entry in report.skipped if "assign=True" in entry.what]


class Sized(models.Plain):
    """Forgets the argument that it cannot be built without."""

    def __init__(self, width):
        super().__init__(width)


def test_a_live_module_that_nobody_can_build_again(tmp_path):
    report = api.verify(saved(tmp_path), module=Sized(4), device="simulated")
    skipped = {"round trip": "skipped", "persistence": "skipped"}
    assert statuses(report) == {**PASSED, **skipped}
    assert "kwargs={...} or fresh=" in level(report, "round trip").reason


class Scaled(nn.Module):
    """Stores what it was built with, and a factor that no save brings back."""

    def __init__(self, size=4):
        super().__init__()
        self.size = size
        self.fc = nn.Linear(size, size)
        self.factor = torch.ones(1)

    def forward(self, x: torch.Tensor):
        return self.fc(x) * self.factor


def test_a_loss_is_proved_where_the_arguments_are_given_and_doubted_where_they_are_read(tmp_path):
    module = Scaled()
    torch.save(module.state_dict(), tmp_path / "scaled.pth")
    module.factor.fill_(2)
    fresh = Scaled()
    fresh.load_state_dict(module.state_dict())
    assert not torch.equal(fresh(torch.ones(1, 4)), module(torch.ones(1, 4)))
    given = {"module": module, "inputs": torch.ones(1, 4), "device": "cpu"}
    report = api.verify(tmp_path / "scaled.pth", kwargs={"size": 4}, **given)
    assert level(report, "round trip").status == "failed"
    report = api.verify(tmp_path / "scaled.pth", **given)
    assert level(report, "round trip").status == "inconclusive"
    assert "arguments of its constructor are not known" in level(report, "round trip").reason


def test_a_named_instance_is_left_as_it_is(tmp_path):
    before = {key: value.clone() for key, value in models.INSTANCE.state_dict().items()}
    report = verify(saved(tmp_path), "INSTANCE")
    assert level(report, "forward").status == "passed"
    after = models.INSTANCE.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert models.INSTANCE.body.weight.device == torch.device("cpu")


def test_what_stays_behind_is_told_without_inputs_too(tmp_path):
    report = verify(saved(tmp_path, "WithoutScale"), "WithoutScale")
    assert level(report, "device").details == ("not moved with the module: scale",)


def test_two_runs_say_the_same(tmp_path):
    path = saved(tmp_path, "Tables")
    assert verify(path, "Tables") == verify(path, "Tables")


def test_the_random_generators_are_left_alone(tmp_path):
    path = saved(tmp_path)
    before = torch.get_rng_state()
    verify(path, "Plain")
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_keep_their_kind(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(ModuleError):
        verify(path, "Nothing")
    with pytest.raises(ReadError):
        verify(tmp_path / "none.pth", "Plain")


def test_an_output_with_nan_is_said_to_have_it(tmp_path):
    state_dict = models.Plain().state_dict()
    next(iter(state_dict.values())).fill_(float("nan"))
    path = saved(tmp_path, content=state_dict)
    module = models.Plain()
    module.load_state_dict(torch.load(path))
    output = module(torch.zeros(2, 4))
    words = f"{int(output.isnan().sum())} of {output.numel()} elements of the output are NaN"
    report = verify(path, "Plain", inputs=X)
    assert output.isnan().any()
    assert level(report, "forward").reason == words
    assert report.verdict.endswith(words)


def test_a_file_of_which_nothing_loads_is_not_what_the_other_levels_ran_with(tmp_path):
    path = saved(tmp_path, content={"other": torch.ones(2)})
    result = models.Plain().load_state_dict(torch.load(path), strict=False)
    assert {*result.missing_keys} == models.Plain().state_dict().keys()
    report = verify(path, "Plain", inputs=X)
    assert level(report, "load").reason.endswith("the other levels ran with initial values")
