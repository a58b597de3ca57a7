"""Calls like the one before them go straight to the engine, and give what others would."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from pynode import NeuralODE, neural_ode
from pynode.errors import InputError, SolveError
from pynode.options import StepCallbacks
from pynode.problem import ODEProblem

TS = torch.linspace(0, 1, 5)
ENGINES = {"eager": {}, "compiled": {"compile": True}}


@pytest.fixture
def problems(monkeypatch):
    """The problems that are put together: none by calls like the one before."""
    made = []

    def problem(*args):
        made.append(args)
        return ODEProblem(*args)

    monkeypatch.setattr(neural_ode, "ODEProblem", problem)
    return made


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


def fresh(node: NeuralODE, *args, **keywords):
    """What a module that has not been called before gives."""
    other = NeuralODE(node.field)
    other.options = node.options
    return other(*args, **keywords)


@pytest.mark.parametrize("how", ENGINES.values(), ids=ENGINES)
def test_the_second_call_is_short_and_gives_the_same(problems, how):
    node, z = NeuralODE(net(), **how), torch.randn(3, 2)
    with torch.no_grad():
        first = node(z, TS)
        counts = node.stats.as_dict()
        second = node(z, TS)
        assert len(problems) == 1
        assert node.stats.as_dict() == counts
        assert torch.equal(first, second)
        assert torch.equal(node(2 * z, TS.clone()), fresh(node, 2 * z, TS))
    assert len(problems) == 2  # one of them is the fresh one's


@pytest.mark.parametrize("how", ENGINES.values(), ids=ENGINES)
def test_parameters_may_change_in_between(problems, how):
    node, z = NeuralODE(net(), **how), torch.randn(3, 2)
    with torch.no_grad():
        node(z, TS)
        for p in node.parameters():
            p.mul_(1.5)
        again = node(z, TS)
        assert len(problems) == 1
        assert torch.equal(again, fresh(node, z, TS))


OTHERS = {
    "shape": lambda node, z: ((z[:2], TS), {}),
    "dtype": lambda node, z: ((node.double() and z.double(), TS), {}),
    "times": lambda node, z: ((z, TS * 2), {}),
    "number of times": lambda node, z: ((z, TS[:3]), {}),
    "dtype of times": lambda node, z: ((z, TS.double()), {}),
    "a list of times": lambda node, z: ((z, TS.tolist()), {}),
    "times of each sample": lambda node, z: ((z, TS.expand(3, -1)), {}),
    "t0": lambda node, z: ((z, TS), {"t0": -1.0}),
    "structure": lambda node, z: (({"a": z}, TS), {}),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_call_is_looked_at_as_a_whole(problems, other):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, t, z):
            return {"a": self(t, z["a"])} if isinstance(z, dict) else self.net(z)

    node, z = NeuralODE(Field()), torch.randn(3, 2)
    with torch.no_grad():
        node(z, TS)
        args, keywords = other(node, z)
        found = node(*args, **keywords)
        assert len(problems) == 2
        torch.testing.assert_close(found, fresh(node, *args, **keywords), rtol=0, atol=0)


def test_args_are_looked_at(problems):
    node, z = NeuralODE(lambda t, z, a=None: -z if a is None else a * z), torch.ones(2, 1)
    with torch.no_grad():
        assert torch.equal(node(z, TS)[0], z)
        grown = node(z, TS, torch.tensor(2.0))
        assert len(problems) == 2
        torch.testing.assert_close(grown[-1], z * torch.tensor(2.0).exp(), rtol=1e-4, atol=1e-4)


def test_gradients_are_not_lost(problems):
    node, z = NeuralODE(net()), torch.randn(3, 2)
    with torch.no_grad():
        node(z, TS)
    node(z, TS).sum().backward()
    assert len(problems) == 2
    assert all(p.grad is not None for p in node.parameters())


def test_options_field_and_form_are_looked_at(problems):
    node, z = NeuralODE(net(), rtol=1e-3), torch.randn(3, 2)
    with torch.no_grad():
        loose = node(z, TS)
        node.options = NeuralODE(net(), rtol=1e-6, atol=1e-8).options
        tight = node(z, TS)
        assert not torch.equal(loose, tight)
        node.field = nn.Linear(2, 2)
        assert torch.equal(node(z, TS), fresh(node, z, TS))
        node.field.forward = lambda t, z: t * z
        assert torch.equal(node(z, TS), fresh(node, z, TS))
    assert len(problems) == 6


def test_times_that_were_written_over(problems):
    node, z, ts = NeuralODE(net()), torch.randn(3, 2), TS.clone()
    with torch.no_grad():
        before = node(z, ts)
        ts *= 2
        assert torch.equal(node(z, ts), fresh(node, z, TS * 2))
        assert len(problems) == 3
        assert torch.equal(node(z, TS), before)


def test_autocast_and_transforms_are_looked_at(problems):
    options = {"rtol": 1e-2, "atol": 1e-2, "sensitivity": "discrete"}
    node, z = NeuralODE(net(), **options), torch.randn(3, 2)
    with torch.no_grad():
        node(z, TS)
        with torch.autocast("cpu", torch.bfloat16):
            found = node(z, TS)
            assert torch.equal(found, fresh(node, z, TS))
        assert len(problems) == 3
        mapped = torch.func.vmap(lambda z: node(z, TS))(torch.stack([z, 2 * z]))
        assert len(problems) == 4
        torch.testing.assert_close(mapped[1], fresh(node, 2 * z, TS), rtol=1e-1, atol=1e-1)


def test_a_solve_that_fails_says_so_each_time(problems):
    node, z = NeuralODE(lambda z: z * z, max_steps=50), torch.full((1, 1), 0.5)
    with torch.no_grad():
        node(z, TS)
        for _ in range(2):
            with pytest.raises(SolveError, match=r"t=0\.4\d+: max_steps"):
                node(4 * z, TS)
        with pytest.raises(InputError, match="integers"):
            node(torch.ones(1, 1, dtype=torch.int64), TS)


def test_what_else_is_asked_for_goes_the_whole_way(problems):
    z = torch.randn(3, 2)
    steps = StepCallbacks(accepted=lambda t, z, dt: None)
    for how in ({"dense": True}, {"step_control": "per_sample"}, {"callbacks": steps}):
        node = NeuralODE(net(), **how)
        with torch.no_grad():
            assert torch.equal(node(z, TS), node(z, TS))
    assert len(problems) == 6


def test_copies_do_not_know_the_calls_of_the_original():
    node, z = NeuralODE(net()), torch.randn(3, 2)
    with torch.no_grad():
        zs = node(z, TS)
        for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
            assert "_repeated" not in vars(other)
            assert torch.equal(other(z, TS), zs)
            other.field[0].weight.zero_()
            assert torch.equal(other(z, TS), fresh(other, z, TS))
        assert torch.equal(node(z, TS), zs)


def test_the_state_is_not_kept():
    node, z = NeuralODE(net()), torch.randn(3, 2)
    with torch.no_grad():
        node(z, TS)
        node(z, TS)
    seen = weakref.ref(z)
    del z
    gc.collect()
    assert seen() is None
