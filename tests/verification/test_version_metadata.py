"""Files without the versions of `_metadata`; truth is what load_state_dict makes of them."""

from itertools import product

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckptool

SIZES = {"num_features": 3}


class TrackedNorm(nn.BatchNorm1d):
    """The user's subclass of a norm layer."""


class UntrackedNorm(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(3, track_running_stats=False)


class SecondVersion(nn.Module):
    """It declares a version, and no code reads it."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


NORMS = [nn.BatchNorm1d, nn.InstanceNorm1d, nn.SyncBatchNorm, TrackedNorm]
BUILDS = [
    *((cls, {**SIZES, "affine": True, "track_running_stats": is_tracked})
      for cls, is_tracked in product(NORMS, (False, True))),
    (nn.BatchNorm2d, {**SIZES, "affine": False, "track_running_stats": True}),
    (UntrackedNorm, {}),
    (SecondVersion, {}),
]  # fmt: skip
IDS = [f"{cls.__name__}-{kwargs.get('track_running_stats', '')}" for cls, kwargs in BUILDS]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(("cls", "kwargs"), BUILDS, ids=IDS)
def test_a_file_without_versions_that_is_copied_whole_loads(tmp_path, cls, kwargs, suffix):
    state = {
        key: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 7
        for key, tensor in cls(**kwargs).state_dict().items()
    }
    path = tmp_path / f"net.{suffix}"
    save_file(state, path, {"format": "pt"}) if suffix != "pth" else torch.save(state, path)
    module = cls(**kwargs)
    module.load_state_dict(state)
    assert all(torch.equal(module.state_dict()[key], tensor) for key, tensor in state.items())
    report = ckptool.diff(path, module=cls, kwargs=kwargs)
    assert (report.verdict, report.exit_code) == ("loads strictly", 0)
    ckptool.load(cls(**kwargs), path)


def test_an_option_of_a_subclassed_torch_layer_is_no_buffer_that_is_filled_later():
    report = ckptool.audit(UntrackedNorm)
    assert "CK112" not in {finding.code for finding in report.findings}
    output = UntrackedNorm()(torch.randn(4, 3))
    assert output.isfinite().all()
    assert UntrackedNorm().state_dict().keys() == {"weight", "bias"}
