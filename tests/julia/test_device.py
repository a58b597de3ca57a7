"""States on a device, on KernelAbstractions' CPU backend: against the engine on the CPU."""

import pytest
import torch
from julia_cases import CASES, TIMES, gradients, mlp, plain, relative
from torch import Tensor

from pynode import JuliaField, NeuralODE, sensitivities, solve, solvers
from pynode.engines.julia import places, runtime
from pynode.errors import InputError, JuliaError

pytestmark = [pytest.mark.usefixtures("float64")]

BOTH = {"torch", "julia"}
EXPLICIT = {s.name: s for s in solvers() if set(s.engines) >= BOTH and not s.stiff}
SENSITIVITIES = [s.name for s in sensitivities() if set(s.engines) >= BOTH]


@pytest.fixture
def kernels(monkeypatch):
    """Calls in a block of it have tensors of the CPU treated as a device's."""
    try:
        runtime.load("KernelAbstractions")
    except JuliaError as error:
        pytest.skip(str(error).split(". ")[0])

    class Device:
        def __enter__(self) -> None:
            monkeypatch.setattr(places, "place_of", lambda device: "kernels")

        def __exit__(self, *_: object) -> None:
            monkeypatch.undo()

    return Device()


def both(kernels, field, z0, times=TIMES, args=None, **options):
    """zs and gradients by the engine on the CPU, then on the device."""
    node = NeuralODE(field, engine="julia", **options)
    want = gradients(node, z0, times, args)
    evaluations = node.stats.nfe
    with kernels:
        got = gradients(node, z0, times, args)
    assert node.stats.nfe == evaluations
    return want, got


def agree(want, got, limit: float) -> None:
    assert relative(got[0], want[0]) < limit
    for g, w in zip(got[1], want[1], strict=True):
        assert g.shape == w.shape
        assert relative(g, w) < limit


@pytest.mark.julia
@pytest.mark.parametrize("solver", EXPLICIT)
def test_every_solver_and_sensitivity(kernels, solver):
    field = mlp(3, 8)
    for sensitivity in SENSITIVITIES:
        steps = {"rtol": 1e-6, "atol": 1e-8} if EXPLICIT[solver].adaptive else {"dt": 0.05}
        options = {"solver": solver, "sensitivity": sensitivity, **steps}
        # An adjoint solve of other rounding may take other steps.
        limit = 1e-9 if sensitivity == "discrete" else 1e-4
        agree(*both(kernels, field, plain(4), **options), limit)


@pytest.mark.julia
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_fields(kernels, case, sensitivity):
    make, start = CASES[case]
    limit = 1e-9 if sensitivity == "discrete" else 1e-4
    agree(*both(kernels, make(), start(), sensitivity=sensitivity), limit)


@pytest.mark.julia
@pytest.mark.parametrize("batch", [1, 64, 600])
def test_batches_in_float32(kernels, batch):
    """600 rows are more than a reduction does in one part; steps are not for rounding to choose."""
    torch.set_default_dtype(torch.float32)
    steps = {"sensitivity": "discrete", "adaptive": False, "dt": 0.1}
    agree(*both(kernels, mlp(3, 40, 40), plain(batch).float(), **steps), 1e-5)


def driven(t: Tensor, z: Tensor, args: dict) -> Tensor:
    return args["gain"] * torch.tanh(z) * torch.cos(t) - args["leak"] * z


@pytest.mark.julia
def test_args_and_times_of_each_sample(kernels):
    args = {"gain": torch.tensor(1.3), "leak": torch.tensor([0.1, 0.2, 0.3])}
    agree(*both(kernels, driven, plain(2), args=args, sensitivity="discrete"), 1e-9)
    node = NeuralODE(mlp(3, 8), engine="julia", sensitivity="discrete")
    own = [torch.tensor([0.2, 0.5, 1.1]), torch.tensor([0.3]), torch.tensor([0.1, 1.4])]

    def run() -> list[Tensor]:
        z0 = plain(3).requires_grad_()
        zs = node(z0, own, t0=0.0).nan_to_num()
        return [zs.detach(), *torch.autograd.grad(zs.sin().sum(), [z0, *node.parameters()])]

    want = run()
    with kernels:
        for g, w in zip(run(), want, strict=True):
            assert relative(g, w) < 1e-9


@pytest.mark.julia
def test_parameters_may_change_and_the_device_may(kernels):
    field = mlp(3, 8)
    node = NeuralODE(field, engine="julia")
    with kernels:
        before = node(plain(2), TIMES).detach()
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(1.7)
    want = node(plain(2), TIMES).detach()
    with kernels:
        got = node(plain(2), TIMES).detach()
    assert relative(before, want) > 1e-2
    assert relative(got, want) < 1e-12


@pytest.mark.julia
def test_dense_output(kernels):
    node = NeuralODE(mlp(3, 8), engine="julia")
    s = torch.tensor([0.05, 0.77, 1.5])
    with torch.no_grad():
        want = node.solve(plain(2), TIMES)(s)
        with kernels:
            got = node.solve(plain(2), TIMES)(s)
    assert relative(got, want) < 1e-12


@pytest.mark.julia
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"solver": "rodas5p"}, r"no stiff solvers on a GPU.*backend"),
        ({"adjoint_solver": "rodas5p", "sensitivity": "gauss"}, "no stiff solvers"),
        ({"step_control": "per_sample"}, r"no steps per sample on a GPU.*backend"),
        ({"lowering": "callback"}, "states on the CPU"),
    ],
    ids=["stiff", "stiff_adjoint", "per_sample", "callback"],
)
def test_what_a_device_does_not_do(kernels, options, match):
    with kernels, pytest.raises(InputError, match=match):
        NeuralODE(mlp(3, 8), engine="julia", **options)(plain(2), TIMES)


@pytest.mark.julia
def test_a_field_in_julia_is_for_the_cpu(kernels):
    field = JuliaField("function f!(du, u, p, t) du[1] = -u[1] end", 0)
    with kernels, pytest.raises(InputError, match="JuliaField runs on the CPU"):
        solve(field, torch.ones(1), TIMES, engine="julia")


def test_tensors_on_several_devices_are_named():
    with pytest.raises(InputError, match=r"lies on cpu.*\(2,\) on meta"):
        places.check_together([torch.ones(3), torch.ones(2, device="meta")], torch.device("cpu"))


def test_names_of_places():
    assert places.place_of(torch.device("cpu")) == "cpu"
    assert places.place_of(torch.device("cuda", 1)) == "cuda:1"
    with pytest.raises(InputError, match="not on meta"):
        places.place_of(torch.device("meta"))
