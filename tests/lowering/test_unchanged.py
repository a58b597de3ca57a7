"""The quick comparison must never say "unchanged" of a field whose programs would differ."""

import functools
import gc
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pynode.lowering.unchanged import Unchanged


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 2))
        self.rate = 1.0
        self.schedule = [1.0, 2.0]
        self.table = {"a": 1}
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, t, z):
        return self.rate * self.net(z) + self.offset


def made(field: nn.Module) -> Unchanged:
    offset = field.offset
    return Unchanged(field, list(field.parameters()), [(offset, offset.clone())])


CHANGES = {
    "number": lambda f: setattr(f, "rate", 2.0),
    "number of a part": lambda f: setattr(f.net[1], "p", 0.1),
    "switch": lambda f: f.eval(),
    "new attribute": lambda f: setattr(f, "extra", 1),
    "list": lambda f: f.schedule.append(3.0),
    "list entry": lambda f: f.schedule.__setitem__(0, 5.0),
    "dict entry": lambda f: f.table.__setitem__("a", 2),
    "module": lambda f: f.net.__setitem__(1, nn.Tanh()),
    "parameter": lambda f: setattr(f.net[0], "weight", nn.Parameter(torch.zeros(3, 2))),
    "frozen parameter": lambda f: f.net[0].weight.requires_grad_(False),
    "dtype": lambda f: f.double(),
    "buffer's value": lambda f: f.offset.add_(1),
    "buffer": lambda f: f.register_buffer("offset", torch.ones(2)),
    "new buffer": lambda f: f.register_buffer("other", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(change):
    field = Field()
    unchanged = made(field)
    assert unchanged.holds(field)
    change(field)
    assert not unchanged.holds(field)


def test_values_of_parameters_may_change():
    field = Field()
    unchanged = made(field)
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(2)
    assert unchanged.holds(field)


def test_nan_among_constants_is_no_change():
    constant = torch.tensor([torch.nan, 1.0])
    field = lambda z: z  # noqa: E731
    assert Unchanged(field, [], [(constant, constant.clone())]).holds(field)


KINDS = {
    "small": lambda: torch.arange(6.0).reshape(2, 3),
    "large": lambda: torch.arange(3e4),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "one number": lambda: torch.tensor(2.0),
    "none": lambda: torch.zeros(0, 3),
    "integers": lambda: torch.arange(4),
    "half": lambda: torch.arange(4.0).bfloat16(),
    "part of another": lambda: torch.arange(9.0)[2:5],
    "a module's": lambda: nn.Parameter(torch.arange(3.0), requires_grad=False),
}
WRITES = {
    "in place": lambda x: x.add_(1),
    "behind its back": lambda x: x.data.add_(1),
    "last entry": lambda x: x.reshape(-1)[-1:].add_(1) if x.is_contiguous() else x[-1, -1].add_(1),
    "other memory": lambda x: setattr(x, "data", x + 1),
    "memory of another size": lambda x: setattr(x, "data", x.new_ones(*x.shape, 2)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_constants_are_compared_by_value(make, write):
    constant, field = make(), lambda z: z
    unchanged = Unchanged(field, [], [(constant, constant.clone())])
    assert unchanged.holds(field)
    write(constant)
    nothing_else = constant.numel() == 0 and constant.ndim == 2
    assert unchanged.holds(field) == nothing_else


def test_constants_may_still_be_resized():
    constant, field = torch.arange(4.0), lambda z: z
    unchanged = Unchanged(field, [], [(constant, constant.clone())])
    assert unchanged.holds(field)
    constant.untyped_storage().resize_(0)
    assert not unchanged.holds(field)


def test_closures_defaults_and_partials():
    factor = 2.0

    def field(z, scale=[1.0]):  # noqa: B006  # a default that can change
        return factor * scale[0] * z

    bound = functools.partial(field)
    unchanged = Unchanged(bound, [], [])
    assert unchanged.holds(bound)
    field.__defaults__[0][0] = 3.0
    assert not unchanged.holds(bound)
    unchanged = Unchanged(bound, [], [])
    factor = 4.0
    assert not unchanged.holds(bound)
    unchanged = Unchanged(bound, [], [])
    field.__defaults__ = ([7.0],)
    assert not unchanged.holds(bound)


def test_a_bound_method():
    field = Field()
    method = field.forward
    unchanged = Unchanged(method, list(field.parameters()), [])
    assert unchanged.holds(method)
    field.rate = 5.0
    assert not unchanged.holds(method)


RATE = 0.5
SCALE = types.SimpleNamespace(rate=0.5)
NET = nn.Linear(2, 2)


def helper(z):
    return RATE * z


class Settings:
    """As a dataclass with slots is."""

    __slots__ = ("rate",)
    offset = 1.0

    def __init__(self) -> None:
        self.rate = 0.5


class Plain:
    rate = 0.5

    def __init__(self) -> None:
        self.settings = Settings()
        self.weights = np.ones(2)
        self.act = torch.tanh

    def __call__(self, t, z):
        return self.act(self.scaled(z)) + self.settings.offset

    def scaled(self, z):
        return self.settings.rate * self.rate * RATE * z


STARTS = 0.5


class Made:
    def __init__(self) -> None:
        self.rate = STARTS

    def __call__(self, t, z):
        return self.rate * z


class Makes(Made):
    """Holds one of them and makes others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.kind = Made(), Made

    def __call__(self, t, z):
        return self.kind()(t, z)


OUTSIDE = {
    "global number": (lambda t, z: RATE * z, lambda m: m.setattr(__name__ + ".RATE", 2.0)),
    "global of a function that is called": (
        lambda t, z: helper(z),
        lambda m: m.setattr(__name__ + ".RATE", 2.0),
    ),
    "function": (
        lambda t, z: helper(z),
        lambda m: m.setattr(__name__ + ".helper", lambda z: z),
    ),
    "global module": (lambda t, z: NET(z), lambda m: m.setattr(__name__ + ".NET", nn.Linear(2, 2))),
    "namespace": (lambda t, z: SCALE.rate * z, lambda m: m.setattr(SCALE, "rate", 2.0)),
    "global of a method": (Plain(), lambda m: m.setattr(__name__ + ".RATE", 2.0)),
    "class attribute": (Plain(), lambda m: m.setattr(Plain, "rate", 2.0)),
    "class attribute of a part": (Plain(), lambda m: m.setattr(Settings, "offset", 2.0)),
    "method": (Plain(), lambda m: m.setattr(Plain, "scaled", lambda self, z: z)),
    "what makes objects": (
        lambda t, z: Made()(t, z),
        lambda m: m.setattr(__name__ + ".STARTS", 2.0),
    ),
    "what makes objects like those held": (
        Makes(),
        lambda m: m.setattr(__name__ + ".STARTS", 2.0),
    ),
}


@pytest.mark.parametrize("field, change", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_change_outside_the_field_is_noticed(field, change, monkeypatch):
    unchanged = Unchanged(field, [], [])
    assert unchanged.holds(field)
    change(monkeypatch)
    assert not unchanged.holds(field)


def test_what_made_the_field_is_done(monkeypatch):
    field = Made()
    unchanged = Unchanged(field, [], [])
    monkeypatch.setattr(__name__ + ".STARTS", 2.0)
    assert unchanged.holds(field)


INSIDE = {
    "slot": lambda f: setattr(f.settings, "rate", 2.0),
    "array": lambda f: f.weights.__setitem__(0, 3.0),
    "function of a library": lambda f: setattr(f, "act", torch.relu),
}


@pytest.mark.parametrize("change", INSIDE.values(), ids=INSIDE.keys())
def test_a_change_inside_an_object_is_noticed(change):
    field = Plain()
    unchanged = Unchanged(field, [], [])
    assert unchanged.holds(field)
    change(field)
    assert not unchanged.holds(field)


@pytest.mark.parametrize("make", [lambda: lambda z: z, lambda: functools.partial(helper), Plain])
def test_the_field_is_not_kept_alive(make):
    field = make()
    unchanged, gone = Unchanged(field, [], []), weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None and unchanged is not None
