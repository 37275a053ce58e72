"""One computation under other names: the file is migrated, loaded strictly, and computes the same.

weight norm, spectral norm, pruning, LayerNorm's gamma and beta, counters of batches, ties.
"""

import warnings
from collections import OrderedDict

import pytest
import torch
from rules import reparametrized_modules
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.errors import PlanError

HERE = "rules.reparametrized_modules:"
X = torch.linspace(-1, 1, 15).reshape(5, 3)
SIGNAL = torch.linspace(-1, 1, 30).reshape(2, 3, 5)


def wrapped(style, layer="linear"):
    """Return a layer that has run for a while: its estimates are not those it began with."""
    torch.manual_seed(3)
    module = reparametrized_modules.Wrapped(style, layer)
    for _ in range(4):
        module(X if layer == "linear" else SIGNAL)
    return module.eval()


def migrated(tmp_path, state, name, to="b.pth", **kwargs):
    torch.save(state, tmp_path / "a.pth")
    report = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / to, module=HERE + name, kwargs=kwargs, force=True
    )
    assert report.verdict == "migrated: loads strictly"
    return report


def loaded(tmp_path, module, file="b.pth"):
    path = tmp_path / file
    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    module.load_state_dict(found, strict=True)
    return module.eval()


RENAMED = [
    ("old weight norm", "new weight norm"),
    ("new weight norm", "old weight norm"),
    ("old spectral norm", "new spectral norm"),
    ("new spectral norm", "old spectral norm"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("to", ["b.pth", "b.safetensors"])
@pytest.mark.parametrize("layer", ["linear", "transposed convolution"])
@pytest.mark.parametrize(("have", "want"), RENAMED, ids=lambda words: words.replace(" ", "-"))
def test_a_norm_under_its_other_names(tmp_path, have, want, layer, to):
    old = wrapped(have, layer)
    report = migrated(tmp_path, old.state_dict(), "Wrapped", to, style=want, layer=layer)
    assert {step.op for step in report.steps} == {"rename"}
    assert set(torch.load(tmp_path / "a.pth")) != set(
        reparametrized_modules.Wrapped(want, layer).state_dict()
    )
    new = loaded(tmp_path, reparametrized_modules.Wrapped(want, layer), to)
    x = X if layer == "linear" else SIGNAL
    assert torch.equal(new.state_dict()["c.bias"], old.state_dict()["c.bias"])
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_there_and_back_is_the_same_file(tmp_path):
    old = wrapped("old spectral norm").state_dict()
    torch.save(old, tmp_path / "a.pth")
    plan = tmp_path / "plan.toml"
    ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Wrapped",
        kwargs={"style": "new spectral norm"}, save_plan=plan,
    )  # fmt: skip
    ckptool.migrate(tmp_path / "b.pth", tmp_path / "c.pth", plan=plan, reverse=True)
    back = torch.load(tmp_path / "c.pth")
    assert all(torch.equal(back[key], old[key]) for key in old)
    assert back.keys() == old.keys()


def test_a_mask_is_multiplied_in(tmp_path):
    old = wrapped("pruned")
    report = migrated(tmp_path, old.state_dict(), "Wrapped")
    assert [(s.op, s.loses) for s in report.steps] == [("bake", "the masked values, and the mask")]
    new = loaded(tmp_path, reparametrized_modules.Wrapped())
    assert torch.equal(new.c.weight, old.c.weight)
    assert (new.c.weight == 0).sum() == 6
    assert torch.equal(new(X), old(X))


def test_a_mask_in_half_precision(tmp_path):
    old = wrapped("pruned").state_dict()
    half = OrderedDict((key, tensor.bfloat16()) for key, tensor in old.items())
    migrated(tmp_path, half, "Wrapped")
    found = torch.load(tmp_path / "b.pth")["c.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, half["c.weight_orig"] * half["c.weight_mask"])


def test_a_mask_of_another_dtype_is_refused(tmp_path):
    state = wrapped("pruned").state_dict()
    state["c.weight_mask"] = state["c.weight_mask"].bool()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=r"`c.weight_orig` is float32 .* and `c.weight_mask` bool"):
        ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Wrapped")


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("plain", "new spectral norm"),
        ("plain", "orthogonal"),
        ("old weight norm", "new spectral norm"),
        ("new spectral norm", "orthogonal"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_no_arithmetic_gives_is_refused(tmp_path, have, want):
    torch.save(wrapped(have).state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        PlanError, match=r"(?s)not migrated: .*`c.weight` is kept by .* \(CK217\)"
    ) as told:
        ckptool.migrate(
            tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Wrapped", kwargs={"style": want}
        )
    assert "--drop" not in str(told.value)
    assert not (tmp_path / "b.pth").exists()


def test_the_order_of_a_fused_projection_is_never_guessed(tmp_path):
    torch.save(
        reparametrized_modules.Attention(fused=True, layers=1).state_dict(), tmp_path / "a.pth"
    )
    with pytest.raises(PlanError, match=r"`layers.0.qkv.weight` is .* in one \(CK218\)") as told:
        ckptool.migrate(
            tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Attention", kwargs={"layers": 1}
        )
    assert "--drop" not in str(told.value)


def test_gamma_and_beta_of_a_layer_norm(tmp_path):
    torch.manual_seed(0)
    old = reparametrized_modules.Scaled()
    for parameter in old.parameters():
        torch.nn.init.normal_(parameter)
    state = old.state_dict()
    state["norm.gamma"], state["norm.beta"] = state.pop("norm.weight"), state.pop("norm.bias")
    report = migrated(tmp_path, state, "Scaled")
    assert {(s.before, s.after) for s in report.steps} == {
        ("norm.gamma", "norm.weight"),
        ("norm.beta", "norm.bias"),
    }
    assert torch.equal(loaded(tmp_path, reparametrized_modules.Scaled())(X), old(X))


def test_gamma_of_another_class_is_no_weight(tmp_path):
    state = {"norm.gamma": torch.ones(4), "norm.beta": torch.ones(4)}
    state |= {
        k: t for k, t in reparametrized_modules.Net().state_dict().items() if k != "norm.weight"
    }
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=r"`norm.weight` in the module.*`norm.gamma` fits"):
        ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Net")


def trained_net():
    torch.manual_seed(1)
    net = reparametrized_modules.Net()
    for _ in range(5):
        net(torch.randn(8, 3))
    return net.eval()


@pytest.mark.parametrize("to", ["b.pth", "b.safetensors"])
def test_batch_norm_of_torch_0_4_0(tmp_path, to):
    old = trained_net()
    state = old.state_dict()
    del state["norm.num_batches_tracked"]
    state._metadata["norm"]["version"] = 1
    report = migrated(tmp_path, state, "Net", to)
    assert [(s.op, s.after, s.source) for s in report.steps] == [
        ("inject", "norm.num_batches_tracked int64[]", "literal:0")
    ]
    new = loaded(tmp_path, reparametrized_modules.Net(), to)
    assert new.norm.num_batches_tracked.item() == 0
    assert torch.equal(new(X), old(X))


def test_batch_norm_without_statistics_is_refused(tmp_path):
    state = trained_net().state_dict()
    for name in ("num_batches_tracked", "running_var"):
        del state[f"norm.{name}"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=r"(?s)norm.num_batches_tracked.*CK202.*norm.running_var"):
        ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Net")


@pytest.mark.parametrize("to", ["b.pth", "b.safetensors"])
def test_a_name_that_safetensors_left_out(tmp_path, to):
    torch.manual_seed(2)
    old = reparametrized_modules.Tied()
    save_file({"emb.weight": old.emb.weight.detach()}, tmp_path / "a.safetensors")
    report = ckptool.migrate(tmp_path / "a.safetensors", tmp_path / to, module=f"{HERE}Tied")
    assert report.verdict == "migrated: loads strictly"
    assert [(s.op, s.before) for s in report.steps] == [("tie", "head.weight")]
    if to == "b.pth":
        new = loaded(tmp_path, reparametrized_modules.Tied())
        tokens = torch.arange(6)
        assert torch.equal(new(tokens), old(tokens))
        found = torch.load(tmp_path / to)
        assert found["emb.weight"].data_ptr() == found["head.weight"].data_ptr()
    else:
        assert set(load_file(tmp_path / to)) == {"emb.weight"}


def test_a_given_plan_for_a_fused_projection(tmp_path):
    """The line that CK218 shows is a plan that runs."""
    torch.manual_seed(0)
    old = reparametrized_modules.Attention(fused=True, layers=1)
    torch.save(old.state_dict(), tmp_path / "a.pth")
    report = ckptool.diff(tmp_path / "a.pth", module=f"{HERE}Attention", kwargs={"layers": 1})
    lines = [f.fix.split("In plan.toml: ops = [")[1][:-1] for f in report.findings
             if f.code == "CK218"]  # fmt: skip
    (tmp_path / "plan.toml").write_text(f"ops = [{', '.join(lines)}]")
    ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Attention", kwargs={"layers": 1},
        plan=tmp_path / "plan.toml",
    )  # fmt: skip
    new = loaded(tmp_path, reparametrized_modules.Attention(layers=1))
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q, k, v = old.layers[0].qkv(x).chunk(3, dim=-1)
    layer = new.layers[0]
    for part, projection in zip((q, k, v), (layer.q_proj, layer.k_proj, layer.v_proj), strict=True):
        torch.testing.assert_close(projection(x), part)
