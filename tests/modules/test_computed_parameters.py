"""What torch's norms, masks and parametrizations compute in a module, and who else does."""

import pytest
import torch
from migration import forms
from torch import nn
from torch.nn.utils import prune

from ckptool.model import ComputedParameter
from ckptool.modules import describe_module

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
MASK = ComputedParameter("torch.nn.utils.prune.BasePruningMethod")


def computed(module, prefix="layer"):
    return dict(describe_module(module, "live").modules[prefix].computed_parameters)


@pytest.mark.parametrize(
    ("style", "by"),
    [
        ("old weight norm", "torch.nn.utils.weight_norm.WeightNorm"),
        ("new weight norm", "torch.nn.utils.parametrizations._WeightNorm"),
        ("old spectral norm", "torch.nn.utils.spectral_norm.SpectralNorm"),
        ("new spectral norm", "torch.nn.utils.parametrizations._SpectralNorm"),
    ],
)
def test_norms(style, by):
    found = computed(forms.Wrapped(style, "conv1d", dim=1))
    assert found == {"weight": ComputedParameter(by, 1)}


@pytest.mark.parametrize("style", ["old weight norm", "new weight norm"])
def test_a_norm_over_the_whole_tensor(style):
    assert computed(forms.Wrapped(style, dim=None))["weight"].dim == -1


def test_masks_of_several_methods_and_parameters():
    layer = nn.Linear(3, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    assert computed(layer, "") == {"weight": MASK, "bias": MASK}


class Halved(prune.RandomUnstructured):
    def apply_mask(self, module):
        return super().apply_mask(module) / 2


def test_a_pruning_method_with_a_forward_of_its_own_is_not_torchs():
    layer = nn.Linear(3, 4)
    Halved.apply(layer, "weight", 0.5)
    assert computed(layer, "") == {}


@pytest.mark.parametrize(
    "parts", [("new weight norm", "new spectral norm"), ("new weight norm", "doubled"), ("scaled",)]
)
def test_code_of_others_is_not_torchs(parts):
    found = computed(forms.Stacked(*parts))
    assert found.get("weight", ComputedParameter("")).by == ""


def test_plain_modules_compute_nothing():
    assert computed(forms.Wrapped()) == {}
    assert computed(torch.nn.utils.skip_init(nn.Linear, 2, 2), "") == {}


def test_the_dimension_of_a_spectral_norm():
    module = nn.ModuleList([nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 2)])
    modules = describe_module(module, "live").modules
    assert {key: modules[key].spectral_norm_dim for key in ("0", "1")} == {"0": 0, "1": 1}
