"""The quick comparison must never say "unchanged" of a field whose programs would differ."""

import functools

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
    assert unchanged.holds()
    change(field)
    assert not unchanged.holds()


def test_values_of_parameters_may_change():
    field = Field()
    unchanged = made(field)
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(2)
    assert unchanged.holds()


def test_nan_among_constants_is_no_change():
    constant = torch.tensor([torch.nan, 1.0])
    assert Unchanged(lambda z: z, [], [(constant, constant.clone())]).holds()


def test_closures_defaults_and_partials():
    factor = 2.0

    def field(z, scale=[1.0]):  # noqa: B006  # a default that can change
        return factor * scale[0] * z

    bound = functools.partial(field)
    unchanged = Unchanged(bound, [], [])
    assert unchanged.holds()
    field.__defaults__[0][0] = 3.0
    assert not unchanged.holds()
    unchanged = Unchanged(bound, [], [])
    factor = 4.0
    assert not unchanged.holds()
    unchanged = Unchanged(bound, [], [])
    field.__defaults__ = ([7.0],)
    assert not unchanged.holds()


def test_a_bound_method():
    field = Field()
    unchanged = Unchanged(field.forward, list(field.parameters()), [])
    assert unchanged.holds()
    field.rate = 5.0
    assert not unchanged.holds()
