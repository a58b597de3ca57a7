"""What costs a new trace, and what does not."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from pynode.field import FlatField
from pynode.lowering import LoweredField, cache, lower
from pynode.solution import Statistics
from pynode.state import StateLayout


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs that are traced."""
    import pynode.lowering.pipeline as module

    cache.forget()
    made: list[str] = []
    trace = module.trace

    def counting(name: str, *args: object) -> object:
        made.append(name)
        return trace(name, *args)

    monkeypatch.setattr(module, "trace", counting)
    return made


def run(fn, z0: Tensor, args=None, which=("f",)) -> LoweredField:
    layout = StateLayout(z0)
    field = FlatField(fn, layout, args, Statistics())
    return lower(field, layout.flatten(z0).detach(), 0.0, which)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))


def test_new_parameter_values_are_not_traced_again(traces: list[str]) -> None:
    model, z = net(), torch.randn(3, 2)
    first = run(model, z)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    second = run(model, z + 1)
    assert traces == ["f"]
    assert second.programs["f"] is first.programs["f"]
    got = second.run("f", (z + 1).numpy())["dz"]
    assert torch.allclose(torch.from_numpy(got).view(3, 2), model(z + 1), atol=1e-6)


def test_only_missing_programs_are_made(traces: list[str]) -> None:
    model, z = net(), torch.randn(3, 2)
    run(model, z)
    both = run(model, z, which=("f", "vjp_z"))
    assert traces == ["f", "vjp"]
    assert set(both.programs) == {"f", "vjp_z"}


@pytest.mark.parametrize("change", ["batch", "dtype", "training", "setting", "frozen", "replaced"])
def test_what_is_traced_again(change: str, traces: list[str]) -> None:
    model, z = net(), torch.randn(3, 2)
    model.rate = 1.0
    model.register_buffer("scale", torch.ones(2))
    field = Scaled(model)
    run(field, z)
    if change == "batch":
        z = torch.randn(4, 2)
    elif change == "dtype":
        field, z = field.double(), z.double()
    elif change == "training":
        field.eval()
    elif change == "setting":
        model.rate = 2.0
    elif change == "frozen":
        model.scale.fill_(3.0)
    else:
        model[0].weight = nn.Parameter(torch.zeros(4, 2))
    lowered = run(field, z)
    assert traces == ["f", "f"]
    got = torch.from_numpy(lowered.run("f", z.numpy())["dz"]).view_as(z)
    assert torch.allclose(got, field(z), atol=1e-5)


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z) * self.inner.scale * self.inner.rate


def test_args_may_change(traces: list[str]) -> None:
    def field(t: Tensor, z: Tensor, args: dict) -> Tensor:
        return args["k"] * z if args["on"] else z

    z = torch.randn(3, 2)
    run(field, z, {"k": torch.tensor(2.0), "on": True})
    again = run(field, z, {"k": torch.tensor(5.0), "on": True})
    assert traces == ["f"]
    assert torch.allclose(torch.from_numpy(again.run("f", z.numpy())["dz"]), 5 * z.view(-1))
    off = run(field, z, {"k": torch.tensor(5.0), "on": False})
    assert traces == ["f", "f"]
    assert torch.equal(torch.from_numpy(off.run("f", z.numpy())["dz"]), z.view(-1))


def test_bound_methods_are_kept_by_their_object(traces: list[str]) -> None:
    class Physics:
        def __init__(self) -> None:
            self.k = torch.tensor(2.0, requires_grad=True)

        def slope(self, t: Tensor, z: Tensor) -> Tensor:
            return -self.k * z

        def other(self, t: Tensor, z: Tensor) -> Tensor:
            return self.k * z

    physics, z = Physics(), torch.randn(2, 2)
    run(physics.slope, z)
    run(physics.slope, z)
    assert traces == ["f"]
    other = run(physics.other, z)
    assert torch.allclose(torch.from_numpy(other.run("f", z.numpy())["dz"]), 2 * z.view(-1))


def test_nothing_keeps_a_field_alive() -> None:
    import gc
    import weakref

    model = net()
    gone = weakref.ref(model)
    run(model, torch.randn(3, 2))
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_lowering_where_gradients_are_off(mode) -> None:
    cache.forget()
    model = net()
    with mode():
        lowered = run(model, torch.randn(3, 2), which=("f", "vjp_z"))
    assert set(lowered.programs) == {"f", "vjp_z"}


def test_fields_are_lowered_from_several_threads_at_once():
    z0, threads = torch.ones(3), 4
    together = threading.Barrier(threads)
    found: list[float] = []

    def work(k: float) -> None:
        field = FlatField(lambda t, z: torch.tanh(k * z) * t, StateLayout(z0), None, Statistics())
        together.wait()
        found.append(len(lower(field, z0).programs))

    for _ in range(3):
        others = [threading.Thread(target=work, args=(float(k),)) for k in range(threads)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    assert len(found) == 3 * threads
