"""The models of torchvision, timm and transformers: a simulated device says what a real one says.

Each model is run as it is, and with its first, middle and last buffer made a plain attribute. No
weights are downloaded. What is not installed is not run.
"""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ckptool.verification.backends import cuda as backend
from ckptool.verification.backends import simulated
from ckptool.verification.forward_pass import ForwardPass, Inputs

pytestmark = pytest.mark.cuda

LARGEST = 300_000_000
"""Elements of the parameters; larger models are skipped, with their number."""
DETECTION = ("rcnn", "retinanet", "ssd", "fcos")
SEGMENTATION = ("fcn_", "deeplab", "lraspp")
VIDEO = ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")
SMALL = ("tiny", "small", "_s", "atto", "nano", "18", "b0", "_t", "xs", "mini")
Made = tuple[nn.Module, Inputs]


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def torchvision_names() -> list[str]:
    if not installed("torchvision"):
        return []
    from torchvision.models import list_models

    return [name for name in list_models() if not name.startswith("quantized_")]


def timm_names() -> list[str]:
    """Return the first small model of each family."""
    if not installed("timm"):
        return []
    from timm import list_models

    families: dict[str, list[str]] = {}
    for name in list_models():
        families.setdefault(name.split("_")[0], []).append(name)
    return [
        next((name for name in names if any(word in name for word in SMALL)), names[0])
        for names in families.values()
    ]


def transformers_names() -> list[str]:
    if not installed("transformers"):
        return []
    from benchmarks.transformers_check import ARCHITECTURES

    return list(ARCHITECTURES)


def of_torchvision(name: str) -> Made:
    from torchvision.models import get_model

    known = any(word in name for word in (*DETECTION, *SEGMENTATION))
    module = get_model(name, weights=None, **({"weights_backbone": None} if known else {}))
    if any(word in name for word in DETECTION):
        return module, Inputs(([torch.rand(3, 128, 128)],))
    if name.startswith("raft"):
        return module, Inputs((torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)))
    if name.startswith(VIDEO):
        return module, Inputs((torch.rand(1, 3, 16, 224, 224),))
    side = 518 if name == "vit_h_14" else 299 if name == "inception_v3" else 224
    return module, Inputs((torch.rand(2, 3, side, side),))


def of_timm(name: str) -> Made:
    from timm import create_model

    module = create_model(name, pretrained=False)
    return module, Inputs((torch.rand(1, *module.default_cfg.get("input_size", (3, 224, 224))),))


def of_transformers(name: str) -> Made:
    from benchmarks.transformers_check import ARCHITECTURES, build

    settings, inputs = ARCHITECTURES[name]
    return build(name, settings), Inputs((), inputs)


LIBRARIES: dict[str, tuple[Callable[[str], Made], Callable[[], list[str]]]] = {
    "torchvision": (of_torchvision, torchvision_names),
    "timm": (of_timm, timm_names),
    "transformers": (of_transformers, transformers_names),
}
NONE = pytest.mark.skip(reason="none of torchvision, timm and transformers is installed")
MODELS = [(library, name) for library, (_, names) in LIBRARIES.items() for name in names()] or [
    pytest.param("none", "none", marks=NONE)
]


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_both_devices_say_the_same(library, name, cuda):
    torch.manual_seed(0)
    module, inputs = LIBRARIES[library][0](name)
    elements = sum(one.numel() for one in module.parameters())
    if elements > LARGEST:
        pytest.skip(f"{elements:,} elements")
    for path in (None, *some_buffers(module)):
        real = run(backend.run_on_cuda, module, path, inputs, cuda)
        imitated = run(simulated.run_simulated, module, path, inputs, cuda)
        assert all("custom operator" in one for one in imitated.unmodelled_operations)
        if real.error is None:
            assert not imitated.device_mismatches, path
            assert imitated.error is None, path
        else:
            assert backend.is_device_error(real.error.error), (path, real.error)
            assert path in {clash.attribute for clash in imitated.device_mismatches}, path


def some_buffers(module: nn.Module) -> list[str]:
    names = [name for name, _ in module.named_buffers() if not name.endswith("_tracked")]
    return list(dict.fromkeys(names[at] for at in (0, len(names) // 2, -1) if names))


def run(
    device_run: Callable[[nn.Module, Inputs, torch.device], ForwardPass],
    module: nn.Module,
    path: str | None,
    inputs: Inputs,
    device: torch.device,
) -> ForwardPass:
    """Run a copy of the module, with the buffer at `path` made a plain attribute."""
    module = copy.deepcopy(module)
    if path is not None:
        owner, _, name = path.rpartition(".")
        holder: Any = module.get_submodule(owner)
        vars(holder)[name] = holder._buffers.pop(name)
    torch.manual_seed(0)
    return device_run(module.eval(), inputs.map_tensors(Tensor.clone), device)
