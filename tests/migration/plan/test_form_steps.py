"""A parameter in another form: the migrated file is loaded strictly, and computes what the old did.

Every case asks plain torch: the old module's output, and the new module's after load_state_dict.
"""

import itertools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from migration import forms
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.errors import PlanError

HERE = "migration.forms:"
NORMS = ("old weight norm", "new weight norm", "old spectral norm", "new spectral norm")
WEIGHT_NORMS = NORMS[:2]
DTYPES = (
    "float32",
    *(pytest.param(d, marks=pytest.mark.matrix) for d in ("float64", "float16", "bfloat16")),
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def train(module, x):
    """Return the module as after training: no norm is 1, and no estimate as it began."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter))
        for _ in range(3):
            module(x)
    return module.eval()


def compute(module, x):
    with torch.no_grad():
        return module.eval()(x)


def migrate(tmp_path, state, name, to="b.pth", **options):
    source = tmp_path / "a.pth"
    torch.save(state, source)
    return ckptool.migrate(source, tmp_path / to, module=HERE + name, force=True, **options)


def load(path):
    if path.is_dir():
        return {k: t for file in path.glob("*.safetensors") for k, t in load_file(file).items()}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def operations(report):
    return [step.op for step in report.steps]


def layers_of(style):
    """Return the layers that torch can put `style` around and run."""
    for layer in forms.LAYERS:
        # torch's LSTM goes on with the weights that it had before it was parametrized.
        if layer == "lstm" and style.startswith("new"):
            continue
        yield layer


@pytest.mark.parametrize("style", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_is_computed_as_in_the_forward_pass(tmp_path, style, dtype):
    for layer in layers_of(style):
        x = forms.make_input(layer, getattr(torch, dtype))
        try:
            old = train(forms.Wrapped(style, layer, dtype), x)
        except RuntimeError as error:
            assert "not implemented for" in str(error)  # noqa: PT017 - half precision on the CPU
            continue
        kwargs = {"layer": layer, "dtype": dtype}
        report = migrate(tmp_path, old.state_dict(), "Wrapped", kwargs=kwargs)
        assert operations(report) == [f"remove-{style.split(' ', 1)[1].replace(' ', '-')}"]
        new = forms.Wrapped("plain", layer, dtype)
        new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
        assert torch.equal(compute(new, x), compute(old, x)), layer


@pytest.mark.parametrize("style", WEIGHT_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_weight_gets_torchs_right_inverse(tmp_path, style, dtype):
    for layer in layers_of(style):
        x = forms.make_input(layer, getattr(torch, dtype))
        old = train(forms.Wrapped("plain", layer, dtype), x)
        kwargs = {"style": style, "layer": layer, "dtype": dtype}
        report = migrate(tmp_path, old.state_dict(), "Wrapped", kwargs=kwargs)
        assert operations(report) == ["add-weight-norm"]
        assert "equal up to rounding" in report.steps[0].why
        new = forms.Wrapped(style, layer, dtype)
        new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
        epsilon = torch.finfo(getattr(torch, dtype)).eps
        torch.testing.assert_close(
            compute(new, x), compute(old, x), rtol=20 * epsilon, atol=20 * epsilon
        )


@pytest.mark.parametrize(("style", "dim"), [*itertools.product(WEIGHT_NORMS, (None, 1, 2, -2))])
def test_a_norm_of_another_dimension(tmp_path, style, dim):
    x = forms.make_input("conv1d", torch.float32)
    old = train(forms.Wrapped(style, "conv1d", dim=dim), x)
    report = migrate(tmp_path, old.state_dict(), "Wrapped", kwargs={"layer": "conv1d"})
    assert operations(report) == ["remove-weight-norm"]
    new = forms.Wrapped("plain", "conv1d")
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    assert torch.equal(compute(new, x), compute(old, x))
    kwargs = {"style": style, "layer": "conv1d", "dim": dim}
    migrate(tmp_path, new.state_dict(), "Wrapped", kwargs=kwargs)
    again = forms.Wrapped(style, "conv1d", dim=dim)
    again.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    torch.testing.assert_close(compute(again, x), compute(old, x), rtol=1e-6, atol=1e-6)


def test_a_norm_of_the_whole_tensor_of_torch_0_3(tmp_path):
    """Its `g` is [1], which torch's load makes a tensor without dims."""
    x = forms.make_input("linear", torch.float32)
    old = train(forms.Wrapped("old weight norm", dim=None), x)
    state = old.state_dict()
    state["layer.weight_g"] = state["layer.weight_g"][None]
    forms.Wrapped("old weight norm", dim=None).load_state_dict(state, strict=True)
    migrate(tmp_path, state, "Wrapped")
    new = forms.Wrapped()
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    assert torch.equal(compute(new, x), compute(old, x))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [(0.0, "a norm of 0"), (60000.0, "a norm that torch.float16 cannot represent")],
)
def test_a_weight_of_which_a_norm_would_make_nan_is_refused(tmp_path, weight, reason):
    """With such a weight, torch itself computes nan and says nothing."""
    old = forms.Wrapped(dtype="float16")
    with torch.no_grad():
        old.layer.weight[1] = weight
    kwargs = {"style": "new weight norm", "dtype": "float16"}
    with pytest.raises(PlanError, match=f"add-weight-norm `layer.weight`: it has {reason}"):
        migrate(tmp_path, old.state_dict(), "Wrapped", kwargs=kwargs)


def test_the_largest_difference_of_rounding_is_said(tmp_path):
    old = forms.Wrapped()
    migrated = migrate(tmp_path, old.state_dict(), "Wrapped", kwargs={"style": "old weight norm"})
    new = forms.Wrapped("old weight norm")
    new.load_state_dict(load(tmp_path / "b.pth"))
    compute(new, torch.ones(1, 3))
    difference = (new.layer.weight - old.layer.weight).abs().max().item()
    said = [note for note in migrated.notes if note.startswith("equal up to rounding")]
    assert [f"{difference:.1e}" in note for note in said] == [True] * bool(difference)


def test_a_norm_of_one_element_says_that_dims_round_otherwise(tmp_path):
    """The last layer of a GAN's discriminator: `g` is [1, 1, 1, 1] for dim=0 and dim=3 alike."""
    torch.manual_seed(0)
    g = torch.rand(1, 1, 1, 1)
    samples = (torch.randn(1, 1024, 3, 1) for _ in range(100))
    v = next(
        v
        for v in samples
        if not torch.equal(torch._weight_norm(v, g, 0), torch._weight_norm(v, g, 3))
    )
    torch.save({"weight_g": g, "weight_v": v, "bias": torch.ones(1)}, tmp_path / "a.pth")
    report = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module="torch.nn:Conv2d",
        kwargs={"in_channels": 1024, "out_channels": 1, "kernel_size": [3, 1]},
    )  # fmt: skip
    found = load(tmp_path / "b.pth")["weight"]
    assert torch.equal(found, torch._weight_norm(v, g, 0))
    difference = (found - torch._weight_norm(v, g, 3)).abs().max().item()
    assert any(f"{difference:.1e}" in note for note in report.notes)


def test_the_dimension_of_a_spectral_norm_is_that_of_its_layer(tmp_path):
    """A square weight fits both ways, and torch takes dim=1 for a transposed convolution."""
    x = forms.make_input("transposed conv2d", torch.float32)
    old = train(forms.Wrapped("old spectral norm", "transposed conv2d"), x)
    migrate(tmp_path, old.state_dict(), "Wrapped", kwargs={"layer": "transposed conv2d"})
    new = forms.Wrapped("plain", "transposed conv2d")
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    assert torch.equal(compute(new, x), compute(old, x))


@pytest.mark.parametrize("style", NORMS[2:])
def test_a_spectral_norm_of_another_dimension_of_a_square_weight_is_refused(tmp_path, style):
    x = forms.make_input("square linear", torch.float32)
    old = forms.Wrapped(style, "square linear", dim=1)
    for _ in range(30):
        old(x)
    with pytest.raises(PlanError, match="u and v match dimension 1 of the weight, not 0"):
        migrate(tmp_path, old.state_dict(), "Wrapped", kwargs={"layer": "square linear"})
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_weight_gets_a_mask_of_ones(tmp_path, dtype):
    x = forms.make_input("linear", getattr(torch, dtype))
    old = train(forms.Wrapped("plain", "linear", dtype), x)
    kwargs = {"style": "pruned", "dtype": dtype}
    report = migrate(tmp_path, old.state_dict(), "Wrapped", kwargs=kwargs)
    assert operations(report) == ["rename", "inject"]
    new = forms.Wrapped("pruned", "linear", dtype)
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    assert new.layer.weight_mask.eq(1).all()
    assert torch.equal(compute(new, x), compute(old, x))


CHAINS = [
    ("old spectral norm", "old weight norm"),
    ("new spectral norm", "new weight norm"),
    ("pruned", "new weight norm"),
    ("old spectral norm", "pruned"),
    ("new weight norm", "pruned"),
]


@pytest.mark.parametrize(("have", "want"), CHAINS)
def test_one_norm_for_another_by_way_of_the_plain_weight(tmp_path, have, want):
    x = forms.make_input("conv2d", torch.float32)
    old = train(forms.Wrapped(have, "conv2d"), x)
    migrate(tmp_path, old.state_dict(), "Wrapped", kwargs={"style": want, "layer": "conv2d"})
    new = forms.Wrapped(want, "conv2d")
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    torch.testing.assert_close(compute(new, x), compute(old, x), rtol=1e-6, atol=1e-6)


MIXED = ("old weight norm", "new spectral norm", "new weight norm", "pruned")


@pytest.mark.matrix
@pytest.mark.parametrize("target", ["b.pth", "b.safetensors", "b"])
@pytest.mark.parametrize("source", ["pth", "safetensors", "nested", "ddp", "dcp", "chunks"])
def test_every_container(tmp_path, source, target):
    x = torch.linspace(-1, 1, 20).reshape(1, 2, 10)
    old = train(forms.Vocoder(MIXED), x)
    path, options = save_as(source, old.state_dict(), tmp_path), {}
    if target == "b":
        options["max_shard_size"] = 256
    if source == "nested" and target != "b.pth":
        options["drop_extra"] = True
    report = ckptool.migrate(path, tmp_path / target, module=f"{HERE}Vocoder", **options)
    assert report.verdict == "migrated: loads strictly"
    new = forms.Vocoder()
    found = load(tmp_path / target)
    new.load_state_dict(found.get("model", found), strict=True)
    assert torch.equal(compute(new, x), compute(old, x))


def save_as(source, state, tmp_path):
    path = tmp_path / f"a.{source}"
    if source == "safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    elif source == "dcp":
        dcp.save(dict(state), checkpoint_id=path)
    elif source == "chunks":
        save_in_chunks(state, path)
    elif source == "nested":
        torch.save({"model": state, "epoch": 3}, path := path.with_suffix(".pth"))
    else:
        prefix = "module." if source == "ddp" else ""
        path = path.with_suffix(".pth")
        torch.save({prefix + key: tensor for key, tensor in state.items()}, path)
    return path


def save_in_chunks(state, path):
    """Write a distributed checkpoint in which two ranks have half of each tensor."""
    from formats.test_dcp import MetadataIndex, chunk, metadata, put

    pieces = {}
    for key, tensor in state.items():
        halves = [(0, tensor[: len(tensor) // 2]), (len(tensor) // 2, tensor[len(tensor) // 2 :])]
        pieces[key] = {(start, *[0] * (tensor.dim() - 1)): half.clone() for start, half in halves}
    named = {f"{key} {offsets}": half for key in pieces for offsets, half in pieces[key].items()}
    dcp.save(named, checkpoint_id=path)
    made = metadata(path)
    described = {}
    for key, tensor in state.items():
        described[key] = made.state_dict_metadata[f"{key} {next(iter(pieces[key]))}"]
        described[key].size = tensor.size()
        described[key].chunks = [chunk(at, half.shape) for at, half in pieces[key].items()]
    infos = {index.fqn: info for index, info in made.storage_data.items()}
    made.storage_data = {
        MetadataIndex(key, torch.Size(offsets)): infos[f"{key} {offsets}"]
        for key in pieces
        for offsets in pieces[key]
    }
    made.state_dict_metadata = described
    made.planner_data = {key: (key,) for key in state}
    put(path, made)


@pytest.mark.parametrize("kind", ["weight norm", "spectral norm"])
def test_old_and_new_names_in_one_file(tmp_path, kind):
    x = torch.linspace(-1, 1, 20).reshape(1, 2, 10)
    styles = (f"old {kind}", f"new {kind}", f"old {kind}", f"new {kind}")
    old = train(forms.Vocoder(styles), x)
    for wanted in ((f"new {kind}",) * 4, (f"old {kind}",) * 4):
        migrate(tmp_path, old.state_dict(), "Vocoder", kwargs={"styles": list(wanted)})
        new = forms.Vocoder(wanted)
        new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
        torch.testing.assert_close(compute(new, x), compute(old, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("style", [*NORMS, "pruned"])
def test_a_dry_run_then_its_plan(tmp_path, style):
    x = forms.make_input("conv2d", torch.float32)
    old = train(forms.Wrapped(style, "conv2d"), x)
    torch.save(old.state_dict(), tmp_path / "a.pth")
    module = {"module": f"{HERE}Wrapped", "kwargs": {"layer": "conv2d"}}
    plan = tmp_path / "plan.toml"
    planned = ckptool.migrate(tmp_path / "a.pth", dry_run=True, save_plan=plan, **module)
    assert planned.verdict == "planned (dry run): would load strictly"
    ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", plan=plan, **module)
    new = forms.Wrapped("plain", "conv2d")
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    assert torch.equal(compute(new, x), compute(old, x))


@pytest.mark.parametrize("style", WEIGHT_NORMS)
def test_a_weight_norm_there_and_back(tmp_path, style):
    x = forms.make_input("linear", torch.float32)
    old = train(forms.Wrapped(style), x)
    plan = tmp_path / "plan.toml"
    migrate(tmp_path, old.state_dict(), "Wrapped", save_plan=plan)
    ckptool.migrate(tmp_path / "b.pth", tmp_path / "c.pth", plan=plan, reverse=True)
    again = forms.Wrapped(style)
    again.load_state_dict(load(tmp_path / "c.pth"), strict=True)
    torch.testing.assert_close(compute(again, x), compute(old, x), rtol=1e-6, atol=1e-6)


def test_a_mask_of_ones_there_and_back(tmp_path):
    plan = tmp_path / "plan.toml"
    state = forms.Wrapped().state_dict()
    migrate(tmp_path, state, "Wrapped", kwargs={"style": "pruned"}, save_plan=plan)
    ckptool.migrate(tmp_path / "b.pth", tmp_path / "c.pth", plan=plan, reverse=True)
    back = load(tmp_path / "c.pth")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_spectral_norm_does_not_come_back(tmp_path):
    plan = tmp_path / "plan.toml"
    state = forms.Wrapped("old spectral norm").state_dict()
    migrate(tmp_path, state, "Wrapped", save_plan=plan)
    with pytest.raises(PlanError, match=r"no reverse: remove-spectral-norm .* are gone"):
        ckptool.migrate(tmp_path / "b.pth", tmp_path / "c.pth", plan=plan, reverse=True)


@pytest.mark.parametrize("style", NORMS)
def test_a_tied_layer_stays_tied(tmp_path, style):
    x = forms.make_input("linear", torch.float32)
    old = train(forms.TiedPair(style), x)
    for target in ("b.pth", "b.safetensors"):
        migrate(tmp_path, old.state_dict(), "TiedPair", target)
        found = load(tmp_path / target)
        if target == "b.pth":
            assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()
            new = forms.TiedPair()
            new.load_state_dict(found, strict=True)
            assert torch.equal(compute(new, x), compute(old, x))
        else:
            assert set(found) == {"a.weight", "a.bias"}
            assert torch.equal(found["a.weight"], old.a.weight)


def test_a_file_in_another_dtype_than_the_module(tmp_path):
    """The layer that saved the file computed in the file's dtype."""
    old = forms.Wrapped("new weight norm", dtype="bfloat16")
    report = migrate(tmp_path, old.state_dict(), "Wrapped")
    found = load(tmp_path / "b.pth")["layer.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, old.layer.weight)
    assert "computed in bfloat16" in report.steps[0].why


def test_old_module_and_new_agree(tmp_path):
    """The forward check of `migrate` finds them equal bit for bit, and up to rounding back."""
    old = train(forms.weight_normed(), forms.make_input("linear", torch.float32))
    torch.save(old.state_dict(), tmp_path / "a.pth")
    proof = {"inputs": ["float32[5,3]"], "device": "cpu"}
    report = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", module=f"{HERE}Wrapped",
        old_module=f"{HERE}weight_normed", **proof,
    )  # fmt: skip
    assert [check.result for check in report.checks] == ["passed", "passed"]
    report = ckptool.migrate(
        tmp_path / "b.pth", tmp_path / "c.pth", module=f"{HERE}weight_normed",
        old_module=f"{HERE}Wrapped", tolerance=1e-6, **proof,
    )  # fmt: skip
    assert [check.result for check in report.checks] == ["passed", "passed"]


# torch.nn.MultiheadAttention


@pytest.mark.parametrize("bias", [True, False])
def test_three_projections_of_torchs_attention_become_one(tmp_path, bias):
    torch.manual_seed(0)
    old = forms.Attention(split=True, bias=bias)
    x = torch.randn(2, 5, 8)
    report = migrate(tmp_path, old.state_dict(), "Attention", kwargs={"bias": bias})
    assert operations(report) == ["concat"]
    new = forms.Attention(bias=bias)
    new.load_state_dict(load(tmp_path / "b.pth"), strict=True)
    torch.testing.assert_close(compute(new, x), compute(old, x), rtol=1e-6, atol=1e-6)


def test_three_projections_in_chunks_become_one(tmp_path):
    torch.manual_seed(0)
    old = forms.Attention(split=True)
    save_in_chunks(old.state_dict(), tmp_path / "a")
    ckptool.migrate(tmp_path / "a", tmp_path / "b.safetensors", module=f"{HERE}Attention")
    x = torch.randn(2, 5, 8)
    new = forms.Attention()
    new.load_state_dict(load(tmp_path / "b.safetensors"), strict=True)
    torch.testing.assert_close(compute(new, x), compute(old, x), rtol=1e-6, atol=1e-6)
