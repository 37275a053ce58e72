"""What a plan is derived from a file and a module, and what is refused, by real files."""

import re
import zipfile

import pytest
import torch

import ckptool
from ckptool.errors import PlanError
from ckptool.policy import Policy

HERE = "migration.models:"


def migrated(tmp_path, state, name, **options):
    torch.save(state, tmp_path / "a.pth")
    target = tmp_path / "b.pth"
    return ckptool.migrate(tmp_path / "a.pth", target, module=HERE + name, **options)


def old(**changes):
    return {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)} | changes


def test_wrappers_are_taken_off_wherever_they_stand(tmp_path):
    state = {f"module._orig_mod.{key}": t for key, t in old(scale=torch.ones(2)).items()}
    report = migrated(tmp_path, state, "Scaled")
    assert report.verdict == "migrated: loads strictly"
    assert [s.op for s in report.steps] == ["strip-prefix", "strip-prefix"]
    assert list(torch.load(tmp_path / "b.pth")) == ["fc.weight", "fc.bias", "scale"]


def test_a_prefix_is_added(tmp_path):
    state = {"weight": torch.ones(2, 2), "bias": torch.zeros(2), "v": torch.ones(1)}
    report = migrated(tmp_path, state, "Scaled", drop=["v"], inject={"scale": "zeros"})
    assert report.verdict == "migrated: loads strictly"
    assert torch.load(tmp_path / "b.pth").keys() == {"fc.weight", "fc.bias", "scale"}


def test_a_renamed_module_is_found(tmp_path):
    state = {"lin.weight": torch.ones(2, 2), "lin.bias": torch.zeros(2), "scale": torch.ones(2)}
    with pytest.raises(PlanError, match=r"--rename 'lin\.\*=fc\.\*'"):
        migrated(tmp_path, state, "Scaled")
    report = migrated(tmp_path, state, "Scaled", renames={"lin.*": "fc.*"})
    assert [(s.op, s.before, s.after) for s in report.steps] == [("rename", "lin.*", "fc.*")]
    assert torch.load(tmp_path / "b.pth").keys() == {"fc.weight", "fc.bias", "scale"}


def test_a_constant_buffer_comes_from_the_constructor(tmp_path):
    report = migrated(tmp_path, old(), "Scaled")
    assert [(s.op, s.source) for s in report.steps] == [("inject", "constructor")]
    assert torch.equal(torch.load(tmp_path / "b.pth")["scale"], torch.full((2,), 3.0))


def test_a_random_buffer_is_refused_and_a_source_decides(tmp_path):
    with pytest.raises(
        PlanError, match=r"`noise`: a buffer that is random on every construction.*CK202.*--inj"
    ):
        migrated(tmp_path, old(), "Noisy")
    with pytest.raises(PlanError, match="its value differs each time"):
        migrated(tmp_path, old(), "Noisy", inject={"noise": "constructor"})
    migrated(tmp_path, old(), "Noisy", inject={"noise": "seed:7"})
    from migration import models

    torch.manual_seed(7)
    assert torch.equal(torch.load(tmp_path / "b.pth")["noise"], models.Noisy().noise)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.bias": torch.zeros(2)}, r"`fc.weight`: a parameter .*\(CK201\)"),
        (old(**{"fc.weight": torch.ones(2, 3)}), r"`fc.weight` is \[2, 3\] .*\[2, 2\] \(CK207\)"),
        (
            old(other=torch.ones(9)),
            r"`other`: in the file but .* \(CK204\): --drop other",
        ),
        (old(hidden=torch.zeros(2)), r"`hidden` differs from the value .*\(CK206\).*--drop hidden"),
    ],
)
def test_what_cannot_be_decided_is_named(tmp_path, state, message):
    with pytest.raises(PlanError, match=message):
        migrated(tmp_path, state, "Scaled")
    assert not (tmp_path / "b.pth").exists()


def test_a_redundant_buffer_is_dropped_and_another_value_only_in_so_many_words(tmp_path):
    report = migrated(tmp_path, old(hidden=torch.ones(2)), "Scaled")
    assert [(s.op, s.before) for s in report.steps] == [("inject", "-"), ("drop", "hidden")]
    report = migrated(tmp_path, old(hidden=torch.zeros(2)), "Scaled", drop=["hidden"], force=True)
    assert [s.op for s in report.steps] == ["drop", "inject"]


@pytest.mark.parametrize("source", ["file:donor.safetensors#kept", "npz:stats.npz#kept",
                                    "npz:packed.npz#kept", "literal:[5, 6]"])  # fmt: skip
def test_values_from_elsewhere(tmp_path, monkeypatch, source):
    import numpy as np
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    value = torch.tensor([5.0, 6.0])
    save_file({"kept": value}, "donor.safetensors")
    np.savez("stats.npz", kept=value.numpy(), other=np.ones(3))
    np.savez_compressed("packed.npz", kept=value.numpy())
    migrated(tmp_path, old(), "Noisy", inject={"noise": source})
    assert torch.equal(torch.load(tmp_path / "b.pth")["noise"], value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("(" * 30_000, "cannot be read"),
        ("{[]: 1}", "cannot be read"),
        ("[1]", "the header of"),
        ("{'descr': '<f4', 'shape': (2.0,)}", "is not an array with a torch dtype"),
        ("{'descr': '<f4', 'shape': (-1, -2)}", "is not an array with a torch dtype"),
        ("{'descr': '<f4', 'shape': (9,)}", "is smaller than its header says"),
        ("{'descr': '>f4', 'shape': (2,)}", "is not an array with a torch dtype"),
    ],
)
def test_the_header_of_an_array_is_not_trusted(tmp_path, header, message):
    text = header.encode() + b"\n"
    array = b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text + bytes(8)
    with zipfile.ZipFile(tmp_path / "crafted.npz", "w") as archive:
        archive.writestr("kept.npy", array)
    with pytest.raises(PlanError, match=message):
        migrated(tmp_path, old(), "Noisy", inject={"noise": f"npz:{tmp_path}/crafted.npz#kept"})


def test_an_attribute_of_another_pickled_module(tmp_path):
    from migration import models

    whole = models.Loose()
    whole.scale = torch.tensor([8.0, 9.0])
    torch.save(whole, tmp_path / "whole.pth")
    report = migrated(tmp_path, old(), "Scaled", from_=tmp_path / "whole.pth")
    assert [s.source for s in report.steps] == ["attribute"]
    assert torch.equal(torch.load(tmp_path / "b.pth")["scale"], whole.scale)


def test_a_live_module(tmp_path):
    from migration import models

    torch.save(old(), tmp_path / "a.pth")
    by_name = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module="migration.models:Scaled"
    )
    live = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module=models.Scaled(), force=True
    )
    assert by_name.verdict == live.verdict == "migrated: loads strictly"
    assert by_name.steps == live.steps


def test_a_lightning_checkpoint_keeps_its_epoch(tmp_path, samples):
    report = ckptool.migrate(
        samples / "lightning.ckpt", tmp_path / "b.ckpt",
        module="samples.attention:CausalAttentionWithBuffer",
    )  # fmt: skip
    assert report.verdict == "migrated: loads strictly"
    found = torch.load(tmp_path / "b.ckpt")
    assert (found["epoch"], found["global_step"]) == (3, 400)
    assert next(iter(found["state_dict"])) == "mask"


def with_optimizer(count, shape):
    slots = {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(shape)}}
    optimizer = {"state": slots, "param_groups": [{"lr": 0.1, "params": list(range(count))}]}
    return {"model": old(), "optimizer": optimizer}


def test_an_optimizer_is_kept(tmp_path):
    report = migrated(tmp_path, with_optimizer(2, (2, 2)), "Scaled")
    found = torch.load(tmp_path / "b.pth")["optimizer"]
    assert torch.equal(found["state"][0]["exp_avg"], torch.ones(2, 2))
    assert not [f for f in report.findings if f.code.startswith("CK9")]
    assert (report.verdict, report.exit_code) == ("migrated: loads strictly", 0)


@pytest.mark.parametrize(
    ("count", "shape", "said", "code"),
    [
        (3, (2, 2), "the optimizer at `optimizer` has 3 parameters and the module 2", "CK901"),
        (2, (4,), "`optimizer.state.0.exp_avg` is [4]", "CK902"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_not_written_unless_asked_for(
    tmp_path, count, shape, said, code
):
    state = with_optimizer(count, shape)
    with pytest.raises(PlanError, match=f"{re.escape(said)}.*{code}.*--ignore {code}"):
        migrated(tmp_path, state, "Scaled")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    module = f"{HERE}Scaled"
    ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module=module, policy=Policy(ignore=(code,))
    )
    found = torch.load(tmp_path / "b.pth")["optimizer"]
    assert torch.equal(found["state"][0]["exp_avg"], torch.ones(shape))
    dropped = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "c.safetensors", module=module, drop_extra=True
    )
    assert not [f for f in dropped.findings if f.code.startswith("CK9")]
