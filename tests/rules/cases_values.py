"""Cases of the rules that look at values: with --values, of files and of files with modules."""

import math
from collections import OrderedDict

import modules_for_tests
import torch
from rules.cases import fires, near
from safetensors.torch import save_file
from torch import nn

from ckptool import api

INF, NAN = math.inf, math.nan


def valued(tmp, content):
    torch.save(content, tmp / "model.pth")
    return api.inspect(tmp / "model.pth", values=True)


def met(tmp, content, module: str, **kwargs):
    torch.save(content, tmp / "model.pth")
    target = module if ":" in module else f"modules_for_tests:{module}"
    return api.diff(tmp / "model.pth", module=target, kwargs=kwargs, values=True)


def trained(*shape: int) -> torch.Tensor:
    return torch.linspace(-1.3, 1.7, math.prod(shape)).reshape(shape)


# CK401


@fires("CK401")
def one_nan(tmp):
    weight = trained(3, 4)
    weight[1, 2] = NAN
    report = valued(tmp, {"fc.weight": weight})
    (found,) = report.findings
    assert found.message == (
        "`fc.weight` has 1 NaN and 0 infinite of 12 values, the first at [1, 2]"
    )
    return report


@fires("CK401")
def overflow_in_half_precision(tmp):
    state = {"w": (trained(8) * 1e6).half()}
    save_file(state, tmp / "model.safetensors", metadata={"format": "pt"})
    return api.inspect(tmp / "model.safetensors", values=True)


@fires("CK401")
def nan_in_a_mask(tmp):
    mask = torch.full((4, 4), -INF).triu(1)
    mask[0, 0] = NAN
    return valued(tmp, {"mask": mask})


@fires("CK401", "CK309")
def nan_in_an_optimizer(tmp):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.full((1, 2), NAN)).sum().backward()
    optimizer.step()
    return valued(tmp, {"model": {"w": trained(2)}, "optimizer": optimizer.state_dict()})


@near("CK401")
def causal_mask_of_minus_infinity(tmp):
    return valued(tmp, {"mask": torch.full((4, 4), -INF).triu(1), "w": trained(3)})


@near("CK401")
def observer_before_its_first_batch(tmp):
    observer = torch.ao.quantization.MinMaxObserver().state_dict()
    return valued(tmp, {f"observer.{k}": v for k, v in observer.items()})


@near("CK401")
def integers_and_empty_tensors(tmp):
    return valued(tmp, {"n": torch.tensor(2**62), "none": torch.empty(0, 3), "ok": trained(2)})


# CK402


def network(*, statistics: bool, affine: bool = True) -> dict:
    """Return a convolution and its normalisation, trained, with or without statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    if affine:
        nn.init.normal_(net[1].weight)
    if statistics:
        net(torch.randn(2, 3, 8, 8))
    return {k: v.clone() for k, v in net.state_dict().items()}


@fires("CK402")
def statistics_at_their_defaults(tmp):
    return valued(tmp, network(statistics=False))


@fires("CK402")
def statistics_of_old_torch_without_batches(tmp):
    state = network(statistics=False)
    del state["1.num_batches_tracked"]
    return valued(tmp, state)


@near("CK402")
def a_fresh_model(tmp):
    return valued(tmp, network(statistics=False, affine=False))


@near("CK402")
def statistics_that_were_taken(tmp):
    return valued(tmp, network(statistics=True))


@near("CK402")
def zero_initialised_residual(tmp):
    state = network(statistics=False, affine=False)
    state["1.weight"].zero_()
    return valued(tmp, state)


@near("CK402")
def batches_were_counted(tmp):
    state = network(statistics=False)
    state["1.num_batches_tracked"] += 1
    return valued(tmp, state)


# CK403


@fires("CK403")
def average_of_parameters_only(tmp):
    ema = network(statistics=False)
    report = valued(tmp, {"state_dict": network(statistics=True), "state_dict_ema": ema})
    (found,) = report.findings
    assert found.key == "state_dict_ema"
    assert "1 of 1 running statistics" in found.message
    return report


@fires("CK403")
def average_in_the_same_state(tmp):
    pairs = (("model.", True), ("ema_model.module.", False))
    return valued(tmp, {p + k: v for p, some in pairs for k, v in network(statistics=some).items()})


@fires("CK403")
def average_of_a_sharded_module(tmp):
    pairs = (("model.", True), ("ema._fsdp_wrapped_module.module.", False))
    return valued(tmp, {p + k: v for p, some in pairs for k, v in network(statistics=some).items()})


@fires("CK403", "CK309")
def average_in_a_callback(tmp):
    callbacks = {"EMACallback": {"shadow": network(statistics=False)}}
    raw = {f"model.{k}": v for k, v in network(statistics=True).items()}
    return valued(tmp, {"state_dict": raw, "callbacks": callbacks})


@near("CK403")
def average_with_buffers(tmp):
    both = {"model": network(statistics=True), "ema": network(statistics=True)}
    return valued(tmp, both)


@near("CK403", "CK402")
def both_at_defaults(tmp):
    both = {"model": network(statistics=False), "ema": network(statistics=False)}
    return valued(tmp, both)


@near("CK403", "CK402")
def schema_is_no_average(tmp):
    both = {"model": network(statistics=True), "schema": network(statistics=False)}
    return valued(tmp, both)


# CK404 and CK213


def rope(base: float = 10000.0, **how) -> OrderedDict:
    return modules_for_tests.Rope(base, **how).state_dict()


@fires("CK404")
def rope_rounded_to_bfloat16(tmp):
    return met(tmp, {k: v.bfloat16().float() for k, v in rope().items()}, "Rope")


@fires("CK404")
def rope_stored_as_float16(tmp):
    return met(tmp, {k: v.half() for k, v in rope().items()}, "Rope")


@near("CK404", "CK213")
def rope_of_another_base_rounded(tmp):
    return met(tmp, {k: v.bfloat16().float() for k, v in rope(5e5).items()}, "Rope")


@near("CK404")
def mask_that_half_precision_holds(tmp):
    return met(tmp, modules_for_tests.BufferMask().state_dict(), "BufferMask")


@fires("CK213")
def rope_of_another_base(tmp):
    return met(tmp, rope(5e5), "Rope")


@near("CK213")
def rope_of_the_same_base(tmp):
    return met(tmp, rope(), "Rope")


@near("CK213")
def statistics_are_no_configuration(tmp):
    net = nn.BatchNorm1d(4)
    net(torch.randn(8, 4))
    return met(tmp, net.state_dict(), "torch.nn:BatchNorm1d", num_features=4)


@near("CK213")
def a_placeholder_that_was_filled(tmp):
    return met(tmp, {"n": torch.tensor(5)}, "Counter")


# CK405


def garbage() -> torch.Tensor:
    """Return what torch.empty gives where pointers and text were: as bytes, then as floats."""
    pointers = torch.arange(0x7F21_3AC0_1000, 0x7F21_3AC0_1000 + 16 * 24, 24)
    return torch.cat([pointers, torch.full((4,), 0x6F6C6C61_63206F74)]).view(torch.float32)


@fires("CK405")
def memory_as_it_was(tmp):
    return valued(tmp, {"w": garbage(), "b": trained(3)})


@fires("CK405")
def memory_of_denormals(tmp):
    return valued(tmp, {"w": torch.arange(20, dtype=torch.int32).view(torch.float32)})


@near("CK405")
def weights_that_decayed(tmp):
    """A channel that weight decay let die is denormal; the others are what they are."""
    weight = trained(4, 5)
    weight[2] = torch.linspace(1e-42, 9e-41, 5)
    return valued(tmp, {"w": weight})


@near("CK405")
def mask_of_the_lowest_number(tmp):
    lowest = torch.finfo(torch.float32).min
    return valued(tmp, {"mask": torch.full((4, 4), lowest).triu(1)})


@near("CK405", "CK309")
def second_moments_are_tiny(tmp):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    (model(torch.ones(1, 2)) * 1e-21).sum().backward()
    optimizer.step()
    return valued(tmp, {"model": {"w": trained(2)}, "optimizer": optimizer.state_dict()})


# CK208, by the numbers


@fires("CK208")
def fraction_cut_off(tmp):
    report = met(tmp, {"n": torch.tensor(2.87)}, "Counter")
    (found,) = report.findings
    assert found.level == "error"
    assert found.message.endswith(": 1 of 1 values change, by up to 30%")
    return report


@near("CK208")
def whole_numbers_in_floats(tmp):
    return met(tmp, {"n": torch.tensor(3.0)}, "Counter")


@near("CK208")
def doubles_that_floats_hold(tmp):
    state = {k: v.double() for k, v in nn.Linear(2, 2).state_dict().items()}
    return met(tmp, state, "torch.nn:Linear", in_features=2, out_features=2)


@fires("CK208")
def doubles_that_floats_round(tmp):
    state = {k: v.double() / 3 for k, v in nn.Linear(2, 2).state_dict().items()}
    report = met(tmp, state, "torch.nn:Linear", in_features=2, out_features=2)
    assert {f.level for f in report.findings} == {"warning"}
    return report


@fires("CK208")
def doubles_that_overflow(tmp):
    state = {k: v.double() + 1e300 for k, v in nn.Linear(2, 2).state_dict().items()}
    report = met(tmp, state, "torch.nn:Linear", in_features=2, out_features=2)
    assert {f.level for f in report.findings} == {"error"}
    return report
