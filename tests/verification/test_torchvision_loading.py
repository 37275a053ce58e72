"""torchvision's own loading code, with files of its old versions and of now, judged by torch.

Its wheels are several GB with the torch that they need, so that this is run by hand in another
environment; see docs/loading.md.
"""

import warnings
from collections import OrderedDict
from itertools import islice

import pytest
import torch

import ckptool

torchvision = pytest.importorskip(
    "torchvision", reason="torchvision imports beside one release of torch only: run by hand"
)

from torchvision import models  # noqa: E402
from torchvision.models._utils import IntermediateLayerGetter  # noqa: E402
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads  # noqa: E402
from torchvision.models.detection.retinanet import (  # noqa: E402
    RetinaNetClassificationHead,
    RetinaNetRegressionHead,
)
from torchvision.models.detection.rpn import RPNHead  # noqa: E402
from torchvision.models.quantization.mobilenetv3 import (  # noqa: E402
    QuantizableSqueezeExcitation,
)
from torchvision.models.vision_transformer import MLPBlock  # noqa: E402
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def _frozen_backbone():
    return models.resnet18(norm_layer=FrozenBatchNorm2d)


MODULES = {
    "RPNHead": lambda: RPNHead(4, 3),
    "RPNHead of two layers": lambda: RPNHead(4, 3, conv_depth=2),
    "FeaturePyramidNetwork": lambda: FeaturePyramidNetwork([4, 8], 4),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(4),
    "RetinaNetClassificationHead": lambda: RetinaNetClassificationHead(4, 2, 3),
    "RetinaNetRegressionHead": lambda: RetinaNetRegressionHead(4, 2),
    "MaskRCNNHeads": lambda: MaskRCNNHeads(4, (4, 4), 1),
    "MLPBlock": lambda: MLPBlock(4, 8, 0.0),
    "MNASNet": lambda: models.mnasnet0_5(num_classes=3),
    "MNASNet 1.0": lambda: models.mnasnet1_0(num_classes=3),
    "QuantizableSqueezeExcitation": lambda: QuantizableSqueezeExcitation(4, 4),
    "IntermediateLayerGetter": lambda: IntermediateLayerGetter(models.resnet18(), {"layer1": "0"}),
    "DenseNet": lambda: models.densenet121(num_classes=3),
    "a frozen ResNet": _frozen_backbone,
    "Mask R-CNN": lambda: models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2
    ),
    "RetinaNet": lambda: models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2
    ),
    "ViT": lambda: models.VisionTransformer(32, 16, 1, 1, 8, 16, num_classes=3),
}
OLD_NAMES = (
    ("rpn.head.conv.0.0.", "rpn.head.conv."),
    ("conv.0.0.", "conv."),
    (".0.weight", ".weight"),
    (".0.bias", ".bias"),
    ("0.0.", "mask_fcn1."),
    ("1.0.", "mask_fcn2."),
    ("mlp.0.", "mlp.linear_1."),
    ("mlp.3.", "mlp.linear_2."),
    ("0.", "linear_1."),
    ("3.", "linear_2."),
)


def iter_files(state):
    """Yield (name, state): of each version, with names of old, and with one key more or less."""
    yield "as it writes it", state
    for version in (None, 1, 2):
        yield f"of version {version}", as_version(state, version)
        yield (
            f"without a counter, of version {version}",
            as_version(
                {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
                version,
                state,
            ),
        )
        for new, old in OLD_NAMES:
            renamed = {key.replace(new, old): value for key, value in state.items()}
            if renamed.keys() != state.keys():
                yield f"{new} is {old}, of version {version}", as_version(renamed, version, state)
        counted = dict(state) | {"num_batches_tracked": torch.tensor(0)}
        yield f"with a counter, of version {version}", as_version(counted, version, state)
    keys = list(state)
    for key in (keys[0], keys[len(keys) // 2]):
        yield f"without {key}", as_version({k: v for k, v in state.items() if k != key}, None)


LARGE = {"MNASNet 1.0", "DenseNet", "a frozen ResNet", "Mask R-CNN", "RetinaNet"}


def as_version(state, version, like=None):
    changed = OrderedDict(state)
    if version is not None:
        prefixes = getattr(state if like is None else like, "_metadata", {})
        changed._metadata = OrderedDict((prefix, {"version": version}) for prefix in prefixes)
    return changed


def load_with_torch(make, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            make().load_state_dict(torch.load(path))
        except Exception as error:  # noqa: BLE001 (a hook may raise anything)
            return str(error)
    return ""


@pytest.mark.parametrize("name", MODULES)
def test_files_of_each_version(name, tmp_path, record_property):
    make, wrong, loaded, count = MODULES[name], [], 0, 0
    torch.manual_seed(0)
    files = iter_files(make().state_dict())
    for index, (file, state) in enumerate(islice(files, 6 if name in LARGE else None)):
        path = tmp_path / f"{index}.pth"
        torch.save(state, path)
        error = load_with_torch(make, path)
        verdict = ckptool.diff(path, module=make()).verdict
        path.unlink()
        count += 1
        loaded += not error
        if verdict.startswith("loads") != (not error):
            wrong.append((file, verdict, error[:200]))
    record_property("files", count)
    record_property("files that load", loaded)
    assert wrong == []
    assert 0 < loaded <= count


@pytest.mark.parametrize(
    ("make", "rename"),
    [
        (MODULES["RPNHead"], lambda key: key.replace("conv.0.0.", "conv.")),
        (
            MODULES["FeaturePyramidNetwork"],
            lambda key: key.replace(".0.weight", ".weight").replace(".0.bias", ".bias"),
        ),
    ],
    ids=["RPNHead", "FeaturePyramidNetwork"],
)
def test_a_file_of_version_1_needs_no_migration(make, rename, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({rename(key): value for key, value in make().state_dict().items()}, path)
    assert load_with_torch(make, path) == ""
    report = ckptool.diff(path, module=make())
    assert report.verdict.startswith("loads strictly, by the module's own upgrade of ")
    dry_run = ckptool.migrate(path, tmp_path / "new.pth", module=make(), dry_run=True)
    assert dry_run.steps == ()
    assert "would load strictly, by the module's own upgrade of" in dry_run.verdict
