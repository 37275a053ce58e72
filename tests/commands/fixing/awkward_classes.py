# ruff: noqa: E501 - sources in strings
"""Classes whose layout is awkward to edit: continuations, comments, aliases, computed names."""

from commands.fixing.source_parts import HEAD, make_class

MASK = "self.mask = torch.ones(4)"
MASKED = "return self.linear(x) * self.mask"
CONVS = "self.convs = [nn.Linear(4, 4)]"
APPLIED = "for conv in self.convs:\n    x = conv(x)\nreturn self.linear(x)"

HELPER_FILES = {
    "mixin_base": "import torch\n\n\nclass MaskMixin:\n    def make_mask(self):\n        self.mask = torch.ones(4)\n",
    "generic_base": "from typing import Generic, TypeVar\n\nT = TypeVar('T')\n"
    + make_class("self.mask = 2.0").replace(
        "class Net(nn.Module)", "class Base(nn.Module, Generic[T])"
    ),
    "array_base": make_class("self.mean = np.ones(4)").replace("class Net", "class Base"),
}
"""Files that classes of other files derive from."""

AWKWARD_FIXED = {
    # how an attribute is used
    "checked_for_none": make_class(MASK, "if self.mask is None:\n    return x\nreturn self.linear(x) * self.mask"),
    "checked_by_hasattr": make_class(MASK, 'if hasattr(self, "mask"):\n    x = x * self.mask\nreturn self.linear(x)'),
    "moves_itself": make_class(MASK, "self.mask = self.mask.to(x.device)\nreturn self.linear(x) * self.mask"),
    "moved_by_apply": make_class(
        MASK, MASKED, "def _apply(self, fn, recurse=True):\n    super()._apply(fn, recurse)\n    self.mask = fn(self.mask)\n    return self"
    ),
    "moved_by_to": make_class(
        MASK, MASKED, "def to(self, *args, **kwargs):\n    super().to(*args, **kwargs)\n    self.mask = self.mask.to(*args, **kwargs)\n    return self"
    ),
    "to_numpy": make_class(MASK, "return self.linear(x) * float(self.mask.numpy().sum())"),
    "to_numpy_later": make_class(
        MASK,
        "total = (self.mask * 2).detach().numpy().sum() + np.asarray(self.mask).sum() + self.mask.cpu().numpy().sum()\nreturn self.linear(x) * float(total)",
    ),
    "to_list": make_class("self.sizes = torch.tensor([2, 2])", "return torch.cat(self.linear(x).split(self.sizes.tolist(), 1), 1)"),
    "by_getattr": make_class(
        "self.mask_0 = torch.ones(4)\nself.mask_1 = torch.ones(4)",
        'for n in range(2):\n    x = x * getattr(self, f"mask_{n}")\nreturn self.linear(x)',
    ),
    "by_getattr_to_numpy": make_class(
        "self.mask_0 = torch.ones(4)\nself.mask_1 = torch.ones(4)",
        'total = float(getattr(self, "mask_0").numpy().sum())\nfor n in range(2):\n    mask = getattr(self, f"mask_{n}")\n    total += float(getattr(self, f"mask_{n}").numpy().sum()) + float(mask.numpy().sum())\nreturn self.linear(x) * total',
    ),
    "in_lambda_later": make_class(f"{MASK}\nself.get = lambda: self.mask", "return self.linear(x) * self.get()"),
    "copied": "import copy\n" + make_class(f"{MASK}\nself.copy = copy.deepcopy(self.mask)", f"{MASKED} + self.copy"),
    "array_copied": make_class("self.mean = np.ones(4)", "return self.linear(x) - torch.tensor(self.mean)"),
    "array_cast": make_class(
        "self.mean = np.ones(4)", "mean = self.mean\nreturn self.linear(x) - torch.tensor(mean, dtype=x.dtype, device=x.device)"
    ),
    "array_as_tensor": make_class("self.mean = np.ones(4)", "return self.linear(x) - torch.as_tensor(self.mean, dtype=torch.float32)"),
    "array_of_base": "import torch\n\nfrom .array_base import Base\n\n\nclass Net(Base):\n    def forward(self, x):\n        return self.linear(x) - torch.from_numpy(self.mean).float()\n",
    # where the statement stands
    "nested_class": HEAD
    + "        self.inner = Net.Inner()\n\n    def forward(self, x):\n        return self.inner(self.linear(x))\n\n    class Inner(nn.Module):\n        def __init__(self):\n            super().__init__()\n            self.mask = torch.ones(4)\n\n        def forward(self, x):\n            return x * self.mask\n",
    "decorated_class": make_class(MASK, MASKED).replace("class Net", "def register(cls):\n    return cls\n\n\n@register\nclass Net"),
    "dataclass": "from dataclasses import dataclass\n\n"
    + make_class(MASK, MASKED)
    .replace("class Net", "@dataclass(eq=False)\nclass Net")
    .replace("    def __init__(self):", "    size: int = 4\n\n    def __post_init__(self):"),
    "dataclass_random": "from dataclasses import dataclass\n\n"
    + make_class("self.noise = torch.randn(self.size)", "return self.linear(x) + self.noise")
    .replace("class Net", "@dataclass(eq=False)\nclass Net")
    .replace("    def __init__(self):", "    size: int = 4\n\n    def __post_init__(self):"),
    "of_mixin": "from .mixin_base import MaskMixin\n"
    + make_class("self.make_mask()", MASKED).replace("class Net(", "class Net(MaskMixin, "),
    "generic": "from typing import Generic, TypeVar\n\nT = TypeVar('T')\n\n" + make_class(MASK, MASKED).replace("nn.Module", "nn.Module, Generic[T]"),
    "one_line": "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self): super().__init__(); self.linear = nn.Linear(4, 4); self.mask = torch.ones(4)\n\n    def forward(self, x): return self.linear(x) * self.mask\n",
    "under_no_grad": make_class("with torch.no_grad():\n    self.mask = torch.ones(4)\n    self.mask[0] = 0.0", MASKED),
    "by_setattr": make_class('setattr(self, "mask", torch.ones(4) * 2)', MASKED),
    # names that setattr() computes
    "by_computed_name": make_class('for n in range(2):\n    setattr(self, f"mask_{n}", torch.ones(4) * n)', "return self.linear(x) * self.mask_0 + self.mask_1"),
    "by_name_of_argument": make_class('for n in range(size):\n    setattr(self, f"mask_{n}", make(n))', 'for n in range(2):\n    x = x + getattr(self, f"mask_{n}")\nreturn self.linear(x)').replace("(self):", "(self, size=2):", 1).replace("\n\n\nclass", "\n\n\ndef make(n):\n    return torch.randn(4) * n\n\n\nclass"),
    "by_name_of_list": make_class('names = ["mask", "cover"]\nfor name in names:\n    setattr(self, name, torch.randn(4))', "return self.linear(x) * self.mask + self.cover"),
    "by_name_of_pairs": make_class('for name, value in (("mask", torch.ones(4)), ("cover", torch.arange(4.0))):\n    setattr(self, name, value)', "return self.linear(x) * self.mask + self.cover"),
    "by_name_of_items": make_class('for name, value in {"mask": torch.ones(4), "cover": None}.items():\n    setattr(self, name + "_", value)', "return self.linear(x) * self.mask_"),
    "by_name_of_zip": make_class('for n, (name, size) in enumerate(zip("ab", (2, 3))):\n    setattr(self, "mask_%s" % name, torch.ones(4) * size + n)', "return self.linear(x) * self.mask_a * self.mask_b"),
    "by_name_of_keyword": make_class("for name in masks:\n    setattr(self, name, torch.ones(4) * masks[name])", "return self.linear(x) * self.mask").replace("(self):", "(self, **masks):", 1).replace("super().__init__()", 'super().__init__()\n        masks = {**masks, "mask": 3.0}'),
    "by_name_in_comprehension": make_class('[setattr(self, "mask_{}".format(n), torch.randn(4)) for n in range(3)]', "return self.linear(x) * self.mask_0 * self.mask_2"),
    "by_name_of_modules": make_class('for n in range(2):\n    setattr(self, f"convs_{n}", [nn.Linear(4, 4), nn.ReLU()])', "for conv in [*self.convs_0, *self.convs_1]:\n    x = conv(x)\nreturn self.linear(x)"),
    "by_name_of_arrays": make_class('for n in range(2):\n    setattr(self, f"mean_{n}", np.ones(4) * n)', "return self.linear(x) - torch.from_numpy(self.mean_1).float()"),
    "set_later_by_other_names": make_class(MASK, MASKED, 'def load(self, state):\n    for name in ["first", "last"]:\n        if name in state:\n            setattr(self, name, state[name])'),
    "in_no_grad_method": make_class("self.build()", MASKED, "@torch.no_grad()\ndef build(self):\n    self.mask = torch.ones(4)"),
    # how it is written
    "continued": make_class("# above\nself.mask = \\\n    torch.ones(  # in\n        4,\n        # dangling\n    )  # after\n# below", MASKED),
    "chained_over_lines": make_class("device = None\nself.window = torch.tensor(\n    np.hanning(4), device=device\n).float()", "return self.linear(x) * self.window"),
    "compared_argument": make_class("self.groups = (groups > 0) + 0.", "return self.linear(x) @ self.groups").replace("(self):", "(self, size=4):", 1).replace("self.groups =", "groups = torch.eye(size)\n        self.groups ="),
    "named_by_walrus": make_class("self.mask = (mask := torch.ones(4))\nself.size = mask.numel()", MASKED),
    "type_comment": make_class("self.mask = torch.ones(4)  # type: torch.Tensor", MASKED),
    "declared_in_class": make_class(MASK, MASKED).replace("class Net(nn.Module):\n", "class Net(nn.Module):\n    mask: torch.Tensor\n\n"),
    "also_in_docstring": make_class(f'"""\n{MASK}\n"""\n{MASK}', MASKED),
    "not_ascii": make_class("self.maß = torch.ones(4)  # Größe", "return self.linear(x) * self.maß"),
    "not_ascii_before_use": make_class(MASK, 'größe = "ä", self.mask.numpy().sum()\nreturn self.linear(x) * float(größe[1])'),
    # containers
    "list_annotated": make_class("self.convs: list[nn.Linear] = [nn.Linear(4, 4)]", APPLIED),
    "list_unpacked": make_class("self.convs = [nn.Linear(4, 4), nn.ReLU()]", "return nn.Sequential(*self.convs)(x)"),
    "list_added_to": make_class(f"{CONVS}\nself.convs += [nn.Linear(4, 4)]", APPLIED),
    "tensors_appended": make_class("self.masks = []\nfor n in range(3):\n    self.masks.append(torch.ones(4) * n)", "for mask in self.masks:\n    x = x + mask\nreturn self.linear(x) * self.masks[1]"),
    "integers_appended": make_class("self.shifts = []\nfor n in range(3):\n    self.shifts.append((torch.arange(4) * n))  # one", "for shift in self.shifts:\n    x = x + shift\nreturn self.linear(x)"),
    "tensors_extended": make_class("self.masks = [torch.zeros(4)]\nself.masks.extend(torch.ones(4) * n for n in range(3))\nself.masks.extend(torch.eye(4))", "return self.linear(x) * self.masks[2] + self.masks[-1]"),
    "tensors_appended_by_method": make_class("self.masks = []\nself.build()", "return self.linear(x) * self.masks[0]", "def build(self):\n    masks = self.masks\n    masks.append(torch.randn(4))"),
    "tensors_by_key": make_class("self.masks = {}\nfor name in 'ab':\n    self.masks[name] = torch.randn(4)", "return self.linear(x) * self.masks['a'] + self.masks['b']"),
    "tensors_added_to": make_class("self.masks = [torch.ones(4)]\nself.masks += [torch.arange(4.0)]\nmasks = self.masks\nmasks += (torch.ones(4) * n for n in range(2))", "for mask in self.masks:\n    x = x + mask\nreturn self.linear(x) * self.masks[-1]"),
    "dict_with_hyphen": make_class("self.convs = {'a-b': nn.Linear(4, 4), \"it's\": nn.ReLU()}", "return self.convs[\"it's\"](self.convs['a-b'](x))"),
    "list_sliced": make_class("self.convs = [nn.Linear(4, 4), nn.Linear(4, 4)]", "for conv in reversed(self.convs[:1]):\n    x = conv(x)\nreturn x"),
    "list_with_shared": make_class("self.convs = [self.linear, nn.Linear(4, 4)]", APPLIED),
    "list_of_shadowed_nn": make_class("self.convs = [Linear(4, 4)]", APPLIED)
    .replace("from torch import nn", "from torch.nn import Linear, Module\n\nnn = 3")
    .replace("nn.Linear", "Linear")
    .replace("nn.Module", "Module"),
    "list_of_tried_import": make_class(CONVS, APPLIED).replace(
        "import torch\nfrom torch import nn", "try:\n    import torch\n    from torch import nn\nexcept ImportError:\n    raise"
    ),
}  # fmt: skip
"""Name of a file -> its source, which has a class Net."""

AWKWARD_REFUSED = {
    "array_scaled": (make_class("self.mean = np.ones(4)", "mean = self.mean\nreturn self.linear(x) - float((mean * 2).sum())"), "used as a NumPy array"),
    "array_given_to_numpy": (make_class("self.mean = np.ones(4)", "return self.linear(x) - float(np.asarray(self.mean).sum())"), "used as a NumPy array"),
    "numpy_of_function": (make_class(MASK, MASKED) + "\n\ndef plot(net):\n    return net.mask.numpy()\n", "a function turns it into a NumPy array"),
    "looked_up_in_dict": (
        make_class(MASK, MASKED, 'def __getstate__(self):\n    state = dict(self.__dict__)\n    state.pop("mask")\n    return state'),
        "looked up in __dict__",
    ),
    "read_by_vars": (make_class(MASK, 'return self.linear(x) * vars(self)["mask"]'), "an item of __dict__"),
    "in_slots": (make_class(MASK, MASKED).replace("class Net(nn.Module):\n", 'class Net(nn.Module):\n    __slots__ = ("mask",)\n\n'), "in __slots__"),
    "own_setattr": (
        make_class(MASK, MASKED, "def __setattr__(self, name, value):\n    super().__setattr__(name, value)"),
        "bound by __setattr__() with a computed name",
    ),
    "overwritten_by_name": (make_class("self.mask_0 = torch.ones(4)", 'setattr(self, f"mask_{0}", self.mask_0)\nreturn self.linear(x) * self.mask_0'), "with a computed name"),
    "set_by_any_name": (
        make_class("for name, value in options.items():\n    setattr(self, name, value)", 'return self.linear(x) * getattr(self, "mask", 1)').replace("(self):", "(self, **options):", 1).replace("super().__init__()", 'super().__init__()\n        options = options or {"mask": torch.ones(4)}'),
        "write self.register_buffer(name, value)",
    ),
    "one_name_trained": (make_class('for n in range(2):\n    setattr(self, f"mask_{n}", torch.ones(4, requires_grad=n > 0))', "return self.linear(x) * self.mask_0 * self.mask_1"), "--parameter mask_1"),
    "one_name_no_tensor": (make_class('for n in range(2):\n    setattr(self, f"mask_{n}", torch.ones(4) if n else make(n))', "return self.linear(x) * self.mask_1").replace("\n\n\nclass", "\n\n\ndef make(n):\n    return n\n\n\nclass"), "`make(n)` may not be a tensor"),
    "set_twice_in_a_line": (make_class('for n in range(2): setattr(self, f"mask_{n}", torch.ones(4)); setattr(self, f"cover_{n}", torch.ones(4))', "return self.linear(x) * self.mask_0 * self.cover_1"), "write each on its own line"),
    "tensors_added_later": (make_class("self.masks = [torch.ones(4)]", "return self.linear(x) * self.masks[0]", "def grow(self):\n    self.masks += [torch.ones(4)]"), "added to or replaced"),
    "key_with_dot": (make_class("self.masks = {'a.b': torch.ones(4)}", "return self.linear(x) * self.masks['a.b']"), "nn.ParameterDict does not accept its key 'a.b'"),
    "module_key_with_dot": (make_class("self.convs = {'a.b': nn.Linear(4, 4)}", "return self.convs['a.b'](x)"), "nn.ModuleDict does not accept its key 'a.b'"),
    "default_of_class": (make_class(MASK, MASKED).replace("class Net(nn.Module):\n", "class Net(nn.Module):\n    mask = None\n\n"), "an attribute of the class"),
    "super_late": (
        make_class("pass", MASKED).replace("        super()", "        self.mask = torch.ones(4)\n        super()"),
        "before super().__init__()",
    ),
    "property_of_subclass": (make_class(MASK, MASKED) + "\n\nclass Other(Net):\n    @property\n    def mask(self):\n        return 1\n", "a property of its class"),
    "deleted_by_name": (make_class(MASK, MASKED, 'def drop(self):\n    delattr(self, "mask")'), "it is deleted at"),
    "requires_grad": (make_class("self.scale = torch.ones(4, requires_grad=True)", "return self.linear(x) * self.scale"), "--parameter scale"),
    "of_global": (make_class("self.mask = MASK", MASKED).replace("\n\n\nclass", "\n\nMASK = torch.ones(4)\n\n\nclass"), "the global `MASK`"),
    "of_default": (make_class("self.mask = mask", MASKED).replace("(self):", "(self, mask=torch.ones(4)):", 1), "the default of the argument"),
    "of_other_object": (make_class("self.mask = Options.mask", MASKED).replace("\n\n\nclass Net", "\n\n\nclass Options:\n    mask = torch.ones(4)\n\n\nclass Net"), "`Options.mask` of another object"),
    "list_by_type": (make_class(CONVS, "convs = self.convs\nassert isinstance(convs, list)\nreturn convs[0](x)"), "its type is asked for"),
    "list_reversed_by_alias": (make_class(CONVS, APPLIED, "def flip(self):\n    convs = self.convs\n    convs.reverse()"), "with .reverse"),
    "list_compared": (make_class(CONVS, APPLIED, "def has(self, convs):\n    return self.convs == convs"), "it is compared"),
    "list_on_the_right": (make_class(CONVS, APPLIED, "def all(self):\n    return [self.linear] + self.convs"), "arithmetic of lists"),
    "tensors_appended_later": (make_class("self.masks = [torch.ones(4)]", "return self.linear(x) * self.masks[0]", "def grow(self):\n    self.masks.append(torch.ones(4))"), "with .append"),
    "tensors_replaced": (make_class("self.masks = {'a': torch.ones(4)}", "self.masks['a'] = torch.ones_like(x)\nreturn self.linear(x) * self.masks['a']"), "its elements are replaced"),
    "generic_base_sets_number": ("import torch\n\nfrom .generic_base import Base\n\n\nclass Net(Base[dict[str, int]]):\n    def __init__(self):\n        super().__init__()\n        self.mask = torch.ones(4)\n\n    def forward(self, x):\n        return x * self.mask\n", "where `2.0` may not be a tensor"),
    # what only a proof finds
    "counted_by_forward": (make_class(MASK, f"count = sum(b.numel() for b in self.buffers())\n{MASKED} + count"), "with this edit, same outputs: in eval mode the outputs differ"),
    "initialised_by_walk": (
        make_class(f"{CONVS}\nfor module in self.modules():\n    if isinstance(module, nn.Linear):\n        nn.init.zeros_(module.weight)", APPLIED),
        "with this edit, same initial values: built under one seed, the values differ",
    ),
    "frozen_by_walk": (make_class(f"{CONVS}\nfor parameter in self.parameters():\n    parameter.requires_grad_(False)", APPLIED), "requires_grad differs"),
    "breaks_on_a_device": (
        make_class("self.slope = torch.tensor(0.5)", "keep = (x < 0).type(torch.Tensor)\nreturn x, self.slope * keep"),
        "with this edit, device: a tensor moved to the CPU at",
    ),
}  # fmt: skip
"""Name of a file -> its source, and a part of the reason."""
