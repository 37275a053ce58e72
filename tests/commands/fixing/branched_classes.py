# ruff: noqa: E501 - sources in strings
"""Classes that assign an attribute in branches, loops and several times, as most real code does.

The constructor of each takes `flag`: both values are built before and after the edit.
"""

from commands.fixing.source_parts import make_class

MASKED = "return self.linear(x) * self.mask"
CHECKED = "x = self.linear(x)\nreturn x if self.mask is None else x * self.mask"


def make_flagged(constructor: str, forward: str = CHECKED, more: str = "") -> str:
    """Return the source of a class Net whose constructor takes `flag`, True by default."""
    return make_class(constructor, forward, more).replace("(self):", "(self, flag=True):", 1)


BRANCHED_FIXED = {
    "or_none": make_flagged("if flag:\n    self.mask = torch.ones(4) * 2\nelse:\n    self.mask = None"),
    "none_first": make_flagged("self.mask = None\nif flag:\n    self.mask = torch.ones(4) * 2"),
    "none_annotated": make_flagged("self.mask: torch.Tensor | None = None\nif flag:\n    self.mask = torch.ones(4) * 2"),
    "two_tensors": make_flagged("if flag:\n    self.mask = torch.ones(4)\nelif flag is None:\n    self.mask = torch.zeros(4)\nelse:\n    self.mask = torch.full((4,), 2.0)", MASKED),
    "only_branch": make_flagged("if flag:\n    self.mask = torch.ones(4) * 2", 'return self.linear(x) * getattr(self, "mask", 1.0)'),
    "or_parameter": make_flagged("if flag:\n    self.mask = torch.ones(4)\nelse:\n    self.mask = nn.Parameter(torch.ones(4))", MASKED),
    "or_number": make_flagged("if flag:\n    self.mask = torch.ones(4)\nelse:\n    self.mask = 2.0", MASKED),
    "or_buffer": make_flagged('if flag:\n    self.mask = torch.ones(4)\nelse:\n    self.register_buffer("mask", torch.zeros(4))', MASKED),
    "matched": make_flagged("match flag:\n    case True:\n        self.mask = torch.ones(4)\n    case _:\n        self.mask = torch.zeros(4)", MASKED),
    "tried": make_flagged("try:\n    self.mask = torch.ones(4) if flag else torch.ones(4, 3) @ torch.ones(4)\nexcept RuntimeError:\n    self.mask = None"),
    "early_return": make_flagged("self.mask = None\nif not flag:\n    return\nself.mask = torch.ones(4) * 2"),
    "early_other": make_flagged("if not flag:\n    self.mask = 1.0\n    return\nself.mask = torch.ones(4) * 2", MASKED),
    "looped": make_flagged("for n in range(3):\n    self.mask = torch.ones(4) * n", MASKED),
    "twice": make_flagged("self.mask = torch.ones(4)\nself.mask = self.mask / self.mask.sum()", MASKED),
    "augmented": make_flagged("self.mask = torch.ones(4)\nif flag:\n    self.mask *= 2", MASKED),
    "chosen": make_flagged("self.mask = torch.ones(4) if flag else None"),
    "chosen_by_type": make_flagged("value = torch.ones(4) if flag else 2.0\nself.mask = value if isinstance(value, torch.Tensor) else torch.tensor(value)", MASKED),
    "argument_by_type": make_flagged("self.mask = torch.full((4,), mask) if not torch.is_tensor(mask) else mask", MASKED).replace("flag=True", "flag=True, mask=3.0"),
    "two_targets": make_flagged("self.mask, self.cover = torch.ones(4), torch.zeros(4)", f"{MASKED} + self.cover"),
    "two_results": make_flagged("self.mask, self.cover = make(4)", f"{MASKED} + self.cover").replace("\n\n\nclass", "\n\n\ndef make(n):\n    return torch.ones(n), torch.zeros(n)\n\n\nclass"),
    "one_of_two_targets": make_flagged("self.mask, self.size = torch.ones(4), 4", f"{MASKED} + self.size"),
    "chained_variable": make_flagged("self.mask = mask = torch.ones(4)\nself.size = mask.numel()", f"{MASKED} + self.size"),
    "chained_attributes": make_flagged("self.mask = self.cover = torch.ones(4)", f"{MASKED} + self.cover"),
    "shared_constant": make_flagged("mask = torch.ones(4)\nself.mask = mask\nself.cover = mask", f"{MASKED} + self.cover"),
    "argument_or_default": make_flagged("self.mask = mask\nif mask is None:\n    self.mask = torch.ones(4)", MASKED).replace("flag=True", "flag=True, mask=None"),
    "random_branch": make_flagged("if flag:\n    self.mask = torch.ones(4)\nelse:\n    self.mask = torch.randn(4)", MASKED),
    "rebuilt_in_forward": make_flagged("self.build(4)", "self.build(x.shape[1], x.device)\nreturn self.linear(x) * self.mask", "def build(self, n, device=None):\n    self.mask = torch.ones(n, device=device)"),
    "rebuilt_by_reset": make_flagged("self.state = torch.zeros(4)", "return self.linear(x) + self.state", "def reset(self):\n    self.state = torch.zeros(4)"),
    "cleared_later": make_flagged("self.mask = torch.ones(4)", CHECKED, "def clear(self):\n    self.mask = None"),
    "moving_average": make_flagged("self.mean = torch.zeros(4)", "self.mean = 0.9 * self.mean + 0.1 * x.mean(0)\nreturn self.linear(x) - self.mean"),
    "changed_by_subclass": make_class("self.mask = torch.ones(4)", MASKED).replace("class Net", "class Base") + "\n\nclass Net(Base):\n    def __init__(self, flag=True):\n        super().__init__()\n        if flag:\n            self.mask = torch.zeros(4)\n",
    "decorated": "import functools\n\n\ndef keep(function):\n    @functools.wraps(function)\n    def call(*args, **kwargs):\n        return function(*args, **kwargs)\n    return call\n\n\n"
    + make_flagged("self.mask = torch.ones(4)", MASKED).replace("    def __init__", "    @keep\n    def __init__"),
    "one_line": "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, flag=True): super().__init__(); self.mask = torch.randn(4); self.cover = torch.ones(4)\n\n    def forward(self, x): return x * self.mask + self.cover\n",
    "list_or_none": make_flagged("if flag:\n    self.convs = [nn.Linear(4, 4)]\nelse:\n    self.convs = None", "for conv in self.convs or ():\n    x = conv(x)\nreturn self.linear(x)"),
    "list_or_list": make_flagged("if flag:\n    self.convs = [nn.Linear(4, 4)]\nelse:\n    self.convs = []", "for conv in self.convs:\n    x = conv(x)\nreturn self.linear(x)"),
    "list_or_module": make_flagged("if flag:\n    self.convs = [nn.Linear(4, 4)]\nelse:\n    self.convs = nn.Sequential()", "for conv in self.convs:\n    x = conv(x)\nreturn self.linear(x)"),
}  # fmt: skip
"""Name of a file -> its source, which has a class Net."""

BRANCHED_REFUSED = {
    "then_number": (make_flagged("self.mask = torch.ones(4)\nif not flag:\n    self.mask = 2.0", MASKED), "where `2.0` may not be a tensor"),
    "then_unknown": (make_flagged("if flag:\n    self.mask = torch.ones(4)\nself.size = 4\nif not flag:\n    self.mask = make(4)", MASKED), "where `make(4)` may not be a tensor"),
    "looped_branches": (make_flagged("for n in range(2):\n    if n:\n        self.mask = torch.ones(4)\n    else:\n        self.mask = n", MASKED), "where `n` may not be a tensor"),
    "in_try_or_number": (make_flagged("try:\n    self.mask = torch.ones(4)\nexcept RuntimeError:\n    self.mask = 1.0", MASKED), "where `1.0` may not be a tensor"),
    "chosen_or_parameter": (make_flagged("self.mask = torch.ones(4) if flag else nn.Parameter(torch.ones(4))", MASKED), "`nn.Parameter(torch.ones(4))` may not be a tensor"),
    "number_by_default": (make_flagged("self.mask = mask", MASKED).replace("flag=True", "flag=True, mask=1.0") + "\n\ndef build():\n    return Net(mask=torch.ones(4))\n", "1.0 by default, which is not a tensor"),
    "grown_in_forward": (make_flagged("self.mask = torch.ones(4)", "self.mask = self.mask.repeat(2)[:4]\nreturn self.linear(x) * self.mask"), "perhaps with a different shape"),
    "cached_in_forward": (make_flagged("self.mask = torch.ones(4)", "self.mask = torch.ones_like(x[0])\nreturn self.linear(x) * self.mask"), "in forward(), perhaps with a different shape"),
    "list_then_sum": (make_flagged("self.convs = [nn.Linear(4, 4)]\nif flag:\n    self.convs = self.convs + [nn.ReLU()]", "for conv in self.convs:\n    x = conv(x)\nreturn x"), "not seen to be a new list"),
    # what only a proof finds
    "wider_after_forward": (make_flagged("self.mean = torch.zeros(4)", "self.mean = 0.5 * self.mean + x\nreturn self.linear(x) - self.mean"), "loads again: a new instance does not load the state after forward"),
}  # fmt: skip
"""Name of a file -> its source, and a part of the reason."""
