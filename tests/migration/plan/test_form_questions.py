"""Forms that no arithmetic leads to: a question, with the reason, and nothing is written."""

import pytest
import torch
from migration import forms
from migration.plan.test_form_steps import migrate

from ckptool.errors import PlanError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def weights(**tensors):
    return {"layer.bias": torch.ones(4), "scale": torch.ones(()), **tensors}


V = torch.linspace(-1, 1, 12).reshape(4, 3)
QUESTIONS = {
    "a g that is no norm of v": (
        weights(**{"layer.weight_g": torch.ones(4), "layer.weight_v": V}), {}, "is not a norm of",
    ),
    "a g of another dtype": (
        weights(**{"layer.weight_g": torch.ones(4, 1).half(), "layer.weight_v": V}), {},
        "float16 and float32",
    ),
    "a v of another shape": (
        weights(**{"layer.weight_g": torch.ones(3, 1), "layer.weight_v": V[:3]}), {},
        r"is \[3, 3\], and the module's `layer.weight` \[4, 3\]",
    ),
    "a spectral norm without u": (
        weights(**{"layer.weight_orig": V, "layer.weight_v": torch.ones(3)}), {},
        "is `layer.weight_orig` in the file `layer.weight` in the module",
    ),
    "a spectral norm of other sizes": (
        weights(**{"layer.weight_orig": V, "layer.weight_u": torch.ones(4),
                   "layer.weight_v": torch.ones(4)}), {}, "do not determine the dimension",
    ),
    "two norms of one parameter": (
        weights(**{"layer.weight_g": torch.ones(4, 1), "layer.weight_orig": V,
                   "layer.weight_u": torch.ones(4), "layer.weight_v": torch.ones(3)}), {},
        "is `layer.weight_orig` in the file `layer.weight` in the module",
    ),
    "a plain weight beside the norm": (
        weights(**{"layer.weight": V, "layer.weight_g": torch.ones(4, 1), "layer.weight_v": V}),
        {}, "`layer.weight_g`: in the file but not in the module",
    ),
    "a spectral norm of a plain weight": (
        weights(**{"layer.weight": V}), {"style": "old spectral norm"},
        "estimated during training",
    ),
    "an orthogonal parametrization": (
        weights(**{"layer.weight": V}), {"style": "orthogonal"}, "only the code of",
    ),
    "out of an orthogonal parametrization": (
        forms.Wrapped("orthogonal").state_dict(), {}, "is defined by its",
    ),
    "a weight norm of integers": (
        weights(**{"layer.weight_g": torch.ones(4, 1).int(), "layer.weight_v": V.int()}), {},
        "int32, for which torch computes no norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("state", "kwargs", "message"), QUESTIONS.values(), ids=QUESTIONS)
def test_what_stays_a_question(tmp_path, state, kwargs, message):
    with pytest.raises(PlanError, match=f"(?s)not migrated: .*{message}"):
        migrate(tmp_path, state, "Wrapped", kwargs=kwargs)
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("new weight norm, new spectral norm", ""),
        ("new weight norm, doubled", ""),
        ("new spectral norm, doubled", ""),
        ("", "new weight norm, doubled"),
        ("", "scaled"),
        ("new weight norm", "scaled"),
        ("old weight norm", "scaled"),
    ],
)
def test_two_parametrizations_or_one_of_a_user_are_a_question(tmp_path, have, want):
    old = forms.stacked(have)
    try:
        with pytest.raises(PlanError, match=r"(?s)not migrated: .*`layer.weight`"):
            migrate(tmp_path, old.state_dict(), "stacked", kwargs={"parts": want})
    except pytest.fail.Exception:
        # The keys are the same: a strict load, which says nothing of what is computed.
        forms.stacked(want).load_state_dict(old.state_dict(), strict=True)
        assert (have, want) == ("new weight norm", "scaled")


def test_a_users_own_norm_with_torchs_names_is_a_question(tmp_path):
    with pytest.raises(PlanError, match=": what it computes is defined by its own code"):
        migrate(tmp_path, forms.Stacked().state_dict(), "own_norm")


def test_other_names_than_torchs_attention_has_are_a_question(tmp_path):
    plan = tmp_path / "plan.toml"
    with pytest.raises(PlanError, match="heads that the file's code may arrange otherwise"):
        migrate(tmp_path, forms.OwnAttention().state_dict(), "Attention", save_plan=plan)
    assert '# op = "concat"' in plan.read_text()
    assert not (tmp_path / "b.pth").exists()


def test_an_attention_that_is_not_torchs_is_a_question(tmp_path):
    with pytest.raises(PlanError, match="in an order that the file does not record"):
        migrate(tmp_path, forms.Attention().state_dict(), "OwnAttention")
