"""Steps of each sample's own: what each sample gets is what it would get alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode import Retcode, ensemble, solve, solvers
from pynode.errors import FieldError, GradientError, InputError, SolveError

OWN = [s for s in solvers() if s.per_sample]
SOLVERS = [(s.name, a) for s in OWN for a in (True, False) if s.adaptive or not a]
pytestmark = pytest.mark.usefixtures("float64")
ORDER = {s.name: s.order for s in solvers()}
PER = {"step_control": "per_sample"}
NAN = math.nan


def swirl(t: Tensor, z: Tensor) -> Tensor:
    """Written for times (n,), faster for samples whose first entry is large."""
    x, y = z[:, 0], z[:, 1]
    w = 1 + 3 * torch.tanh(x * x)
    return torch.stack([w * y - 0.1 * x, -w * x + torch.sin(3 * t)], dim=1)


def scalar_swirl(t: Tensor, z: Tensor) -> Tensor:
    """The same, but it can do only with one time."""
    assert t.ndim == 0
    return swirl(t, z)


class Recorder:
    """Counts rows as they are evaluated."""

    def __init__(self, fn) -> None:
        self.fn, self.rows = fn, []

    def __call__(self, z: Tensor) -> Tensor:
        self.rows.append(len(z))
        return self.fn(z)


def starts(samples: int = 5, size: float = 1.0) -> Tensor:
    return size * torch.randn(samples, 2, dtype=torch.float64)


def assert_as_alone(field, z0: Tensor, rows: list, sol, *, close=1e-8, t0=None, **options):
    """Values, steps and evaluations of each sample against a joint solve of it alone."""
    for b, row in enumerate(rows):
        own = row[row.isfinite()]
        start = None if t0 is None else t0[b]
        alone = solve(field, z0[b : b + 1], own, t0=start, **options)
        got = sol.zs[: len(own), b]
        torch.testing.assert_close(got, alone.zs[:, 0], rtol=close, atol=close)
        assert sol.zs[len(own) :, b].isnan().all()
        steps = int(sol.samples.accepted[b]), int(sol.samples.rejected[b])
        assert steps == (alone.stats.accepted, alone.stats.rejected)


@pytest.mark.parametrize("solver, adaptive", SOLVERS)
def test_equals_each_sample_alone(solver, adaptive):
    """With one solve for samples that start, end and point anywhere."""
    z0 = starts(5, 1.5)
    t = torch.tensor(
        [
            [0.0, 0.4, 1.0, 2.0],
            [0.5, 0.7, NAN, NAN],
            [1.0, 0.4, -0.3, NAN],
            [0.0, 0.3, 0.3, 3.0],
            [2.0, 1.0, 0.5, -1.0],
        ]
    )
    if adaptive:
        rtol = 1e-3 if ORDER[solver] < 3 else 1e-5
        options = {"solver": solver, "rtol": rtol, "atol": rtol / 10}
    else:
        options = {"solver": solver, "adaptive": False, "dt": 0.13}
    sol = solve(swirl, z0, t, **PER, **options)
    assert_as_alone(lambda t, z: swirl(t, z), z0, list(t), sol, **options)
    assert sol.success and sol.retcodes == [Retcode.SUCCESS] * 5
    attempts = sol.samples.accepted + sol.samples.rejected
    assert sol.samples.attempts == attempts.max()
    assert sol.stats.accepted == sol.samples.accepted.sum()


@pytest.mark.parametrize("controller", ["i", "pi", "pid"])
@pytest.mark.parametrize("norm", ["rms", "max", lambda z: z.abs().sum()], ids=["rms", "max", "own"])
def test_controllers_and_norms(controller, norm):
    z0, t = starts(4, 2.0), torch.linspace(0.0, 4.0, 7)
    options = {"controller": controller, "norm": norm, "rtol": 1e-4, "atol": 1e-5}
    sol = solve(swirl, z0, t, **PER, **options)
    assert_as_alone(swirl, z0, [t] * 4, sol, **options)
    assert sol.samples.rejected.sum() > 0


def test_step_size_options_and_tolerances_per_entry():
    z0, t = starts(3, 2.0), torch.linspace(0.0, 2.0, 4)
    options = {"dt": 0.01, "dt_max": 0.07}
    assert_as_alone(swirl, z0, [t] * 3, solve(swirl, z0, t, **PER, **options), **options)
    atol = torch.tensor([1e-4, 1e-6])
    options = {"rtol": 0.0, "atol": atol}
    assert_as_alone(swirl, z0, [t] * 3, solve(swirl, z0, t, **PER, **options), **options)
    atol = torch.tensor([[1e-3], [1e-5], [1e-7]]).expand(3, 2)
    sol = solve(swirl, z0, t, rtol=0.0, atol=atol, **PER)
    for b in range(3):
        alone = solve(swirl, z0[b : b + 1], t, rtol=0.0, atol=float(atol[b, 0]))
        assert int(sol.samples.accepted[b]) == alone.stats.accepted


@pytest.mark.parametrize("solver", ["tsit5", "vern7", "rosenbrock23", "rodas5p"])
def test_jumps_are_landed_on(solver):
    """A field that jumps at 1 and 2, for samples that pass none, one or both, in both ways."""

    def jumping(t: Tensor, z: Tensor) -> Tensor:
        force = 5.0 * (t > 1.0) - 9.0 * (t > 2.0)
        return -z + force.reshape(-1, 1)

    def alone(t: Tensor, z: Tensor) -> Tensor:
        return jumping(t.expand(len(z)), z)

    t = torch.tensor([[0.0, 3.0], [0.0, 0.9], [1.0, 1.7], [2.5, 0.5], [2.0, 1.0], [1.5, 2.0]])
    z0 = starts(6)
    options = {"tstops": [2.0, 1.0], "rtol": 1e-6, "solver": solver}
    sol = solve(jumping, z0, t, **PER, **options)
    assert_as_alone(alone, z0, list(t), sol, **options)


def test_own_initial_times_beside_shared_times():
    """z0 holds at t0[b]; all are wanted at the same times."""
    t0, t = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 1.5, 2.0])
    z0 = starts(3)
    sol = solve(swirl, z0, t, t0=t0, **PER)
    assert sol.ts is t
    assert_as_alone(swirl, z0, [t] * 3, sol, t0=t0)
    later = solve(swirl, z0, t, t0=0.25, **PER)
    assert_as_alone(swirl, z0, [t] * 3, later, t0=[0.25] * 3)


def test_a_sample_with_no_time_to_go_stays():
    t = [torch.tensor([0.3]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])]
    z0 = starts(3)
    sol = solve(swirl, z0, t, **PER)
    assert torch.equal(sol.zs[0], z0) and torch.equal(sol.zs[1, 2], z0[2])
    assert sol.samples.accepted[[0, 2]].tolist() == [0, 0]
    assert sol.zs[1, 0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_dtypes(dtype):
    def field(z: Tensor) -> Tensor:
        return -z * (1 + z.abs())

    z0 = torch.randn(4, 3, dtype=dtype) * torch.tensor([[0.1], [1.0], [2.0], [4.0]]).to(dtype)
    t = torch.linspace(0, 1, 3, dtype=z0.real.dtype)
    fixed = {"solver": "rk4", "adaptive": False, "dt": 0.07}
    sol = solve(field, z0, t, **PER, **fixed)
    assert sol.zs.dtype == dtype
    close = 1e-5 if z0.real.dtype == torch.float32 else 1e-12
    assert_as_alone(field, z0, [t] * 4, sol, close=close, **fixed)
    wide = z0.to(torch.complex128) if z0.is_complex() else z0.double()
    exact = solve(field, wide, t.double(), rtol=1e-10, atol=1e-12).zs.to(dtype)
    sol = solve(field, z0, t, rtol=1e-4, atol=1e-5, **PER)
    torch.testing.assert_close(sol.zs, exact, rtol=1e-3, atol=1e-4)
    assert len(set(sol.samples.accepted.tolist())) > 1


@pytest.mark.parametrize("scalar", [True, False])
def test_structured_states(scalar):
    """Tensors of several ranks, whose samples are coupled inside; fields of (n,) and of one t."""

    def field(t: Tensor, state: dict) -> dict:
        x, (y, c) = state["x"], state["rest"]
        assert not scalar or t.ndim == 0
        wave = torch.sin(t) if scalar else torch.sin(t).reshape(-1, 1, 1)
        return {"x": -x + y.mean(dim=(1, 2)), "rest": (-y * (1 + wave), 1j * c * x.unsqueeze(1))}

    z0 = {"x": torch.randn(3), "rest": (torch.randn(3, 2, 2), torch.randn(3, 1) + 0j)}
    t = torch.tensor([[0.0, 1.0], [0.5, 3.0], [1.0, 0.5]])
    sol = solve(field, z0, t, **PER)
    for b in range(3):
        one = pytree.tree_map(lambda x, b=b: x[b : b + 1], z0)
        alone = solve(field, one, t[b])
        for got, want in zip(pytree.tree_leaves(sol.zs), pytree.tree_leaves(alone.zs), strict=True):
            torch.testing.assert_close(got[:, b], want[:, 0], rtol=1e-10, atol=1e-12)


def on_the_cycle(samples: int) -> Tensor:
    """Phases of van der Pol's limit cycle, mu = 25."""
    phases = torch.linspace(0.0, 42.0, samples + 1)[:-1] + 60.0
    t = torch.cat([torch.zeros(1), phases])
    z0 = torch.tensor([[2.0, 0.0]])
    return solve(van_der_pol, z0, t, solver="rodas5p", dense=False).zs[1:, 0]


def van_der_pol(z: Tensor) -> Tensor:
    x, y = z[:, 0], z[:, 1]
    return torch.stack([y, 25.0 * (1 - x * x) * y - x], dim=1)


def test_fewer_steps_than_a_joint_solve():
    """Samples that are fast at different times: a joint solve is as slow as the fastest, always."""
    z0, t = on_the_cycle(64), torch.linspace(0.0, 42.0, 10)
    options = {"rtol": 1e-5, "atol": 1e-5, "dense": False}
    with torch.no_grad():
        own = solve(van_der_pol, z0, t, **PER, **options)
        joint = solve(van_der_pol, z0, t, **options)
    assert own.samples.attempts <= 700
    assert joint.stats.accepted + joint.stats.rejected >= 3000


def test_ended_samples_cost_nothing():
    """The field is evaluated on the samples that are on their way, and on no other."""
    field = Recorder(lambda z: -z)
    z0 = starts(6)
    ends = [0.1, 5.0, 1.0, 0.2, 3.0, 2.0]
    t = torch.tensor([[0.0, end] for end in ends])
    with torch.no_grad():
        sol = solve(field, z0, t, adaptive=False, dt=0.1, solver="rk4", **PER)
    assert sol.samples.accepted.tolist() == [round(end / 0.1) for end in ends]
    probes = [6, 2]  # all, and a pair, to see how the field may be called
    assert field.rows[:2] == probes
    assert sum(field.rows) == sum(probes) + 4 * int(sol.samples.accepted.sum())
    assert sol.samples.nfe.tolist() == [4 * n for n in sol.samples.accepted.tolist()]
    assert sol.stats.nfe == len(field.rows)


class TestFailures:
    """One sample's end is its own."""

    ODD = torch.tensor([[1.0], [NAN], [3.0], [0.5]], dtype=torch.float64)
    T = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)

    def test_not_finite_from_the_start(self):
        sol = solve(lambda z: -z, self.ODD, self.T, throw=False, **PER)
        assert sol.retcodes == ["success", "non_finite", "success", "success"]
        assert sol.retcode == "non_finite" and sol.samples.failed == [1]
        assert "sample 1 " in sol.message and "began with" in sol.message
        good = [0, 2, 3]
        want = self.ODD[good] * torch.exp(-self.T).reshape(-1, 1, 1)
        torch.testing.assert_close(sol.zs[:, good], want, rtol=1e-5, atol=1e-6)
        assert sol.zs[:, 1].isnan().all()

    def test_blow_up_of_some(self):
        """dz/dt = z² from 1 and 3 ends at 1 and 1/3; from 0.25 it does not before 4."""
        z0 = torch.tensor([[0.25], [1.0], [3.0]])
        sol = solve(lambda z: z * z, z0, self.T, throw=False, max_steps=2000, **PER)
        assert sol.retcode != "success" and sol.samples.failed == [1, 2]
        torch.testing.assert_close(sol.zs[:, 0, 0], 1 / (4 - self.T), rtol=1e-5, atol=0)
        torch.testing.assert_close(sol.zs[1, 1, 0], torch.tensor(2.0), rtol=1e-5, atol=0)
        assert sol.zs[2, 1:].isnan().all() and sol.zs[1, 2].isnan()
        torch.testing.assert_close(sol.samples.t[1:], torch.tensor([1, 1 / 3]), rtol=1e-3, atol=0)
        assert "2 of 3 samples failed" in sol.message
        assert set(sol.samples.messages) == {1, 2}

    def test_raises_after_the_others_have_ended(self):
        with pytest.raises(SolveError, match=r"sample 1 with tsit5.* stopped at t=0: ") as caught:
            solve(lambda z: -z, self.ODD, self.T, **PER)
        error = caught.value
        assert (error.sample, error.samples, error.retcode) == (1, [1], "non_finite")
        assert error.t == 0.0
        assert error.solution.zs[:, [0, 2, 3]].isfinite().all()

    def test_too_many_steps(self):
        z0 = starts(3)
        t = torch.tensor([[0.0, 1.0], [0.0, 50.0], [0.0, 2.0]])
        sol = solve(swirl, z0, t, throw=False, max_steps=100, **PER)
        assert sol.retcodes == ["success", "max_steps", "success"]
        assert sol.samples.accepted[1] + sol.samples.rejected[1] == 100
        assert 0 < sol.samples.t[1] < 50 and "max_steps=100" in sol.message

    def test_step_size_underflow(self):
        def cliff(t: Tensor, z: Tensor) -> Tensor:
            rate = torch.where(t > 1.0, 1e18, 0.0).reshape(-1, 1)
            return rate * (torch.rand_like(z) - 0.5) + 0 * z

        with pytest.raises(InputError, match="called random operation"):
            solve(cliff, starts(3), [0.0, 2.0], throw=False, **PER)

        def singular(t: Tensor, z: Tensor) -> Tensor:
            gap = (1.0 - t).reshape(-1, 1)
            return 1 / (gap.abs() + 1e-300) ** 1.5 + 0 * z

        t = torch.tensor([[0.0, 0.5], [0.0, 2.0]])
        sol = solve(singular, starts(2), t, throw=False, batched_time=True, **PER)
        assert sol.retcodes[0] == "success" and sol.retcodes[1] != "success"
        assert abs(float(sol.samples.t[1]) - 1.0) < 1e-3

    def test_fixed_steps(self):
        z0 = torch.tensor([[-1e3], [1e3], [0.1]])
        sol = solve(
            lambda z: z**3, z0, [0.0, 1.0], solver="rk4", adaptive=False, dt=0.1, throw=False, **PER
        )
        assert sol.retcodes == ["non_finite", "non_finite", "success"]
        assert "lessen dt" in sol.samples.messages[0]

    def test_many_failures_are_told_briefly(self):
        z0 = torch.full((40, 1), NAN)
        z0[3] = 1.0
        sol = solve(lambda z: -z, z0, [0.0, 1.0], throw=False, **PER)
        assert sol.message.startswith("39 of 40 samples failed")
        assert "and 26 more" in sol.message and len(sol.message) < 1500

    def test_gradients_of_the_others(self):
        """Nothing of a failed sample is in a gradient, though its values are NaN."""
        for sensitivity in ("discrete", "gauss"):
            rate = torch.tensor(1.0, requires_grad=True)
            z0 = torch.tensor([[0.25], [1.0], [NAN], [0.5]], requires_grad=True)
            options = {"sensitivity": sensitivity, "throw": False, "max_steps": 500, **PER}
            sol = solve(lambda z, r=rate: r * z * z, z0, [0.0, 0.5, 1.2], **options)
            assert sol.samples.failed == [1, 2]
            grads = torch.autograd.grad(sol.zs.nan_to_num().sum(), [rate, z0])
            fine = torch.tensor([[0.25], [0.5]], requires_grad=True)
            other = solve(lambda z, r=rate: r * z * z, fine, [0.0, 0.5, 1.2], **options).zs.sum()
            half = torch.tensor([[1.0]], requires_grad=True)
            other = other + solve(lambda z, r=rate: r * z * z, half, [0.0, 0.5], **options).zs.sum()
            want = torch.autograd.grad(other, [rate, fine, half])
            torch.testing.assert_close(grads[0], want[0], rtol=1e-4, atol=0)
            torch.testing.assert_close(grads[1][[0, 3]], want[1], rtol=1e-4, atol=0)
            torch.testing.assert_close(grads[1][1:2], want[2], rtol=1e-4, atol=0)
            assert grads[1][2].abs().sum() == 0


class TestCallingTheField:
    """How it may be called is found out, never guessed."""

    T = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.7, 1.0], [1.0, -1.0, -2.0]])

    def same(self, field, reference=None, samples=3, **options):
        z0 = starts(samples)
        t = self.T[:samples]
        sol = solve(field, z0, t, **PER, **options)
        assert_as_alone(reference or field, z0, list(t), sol)
        return sol

    def test_scalar_time(self):
        self.same(scalar_swirl)

    def test_scalar_time_forced(self):
        def both(t: Tensor, z: Tensor) -> Tensor:
            ndims.append(t.ndim)
            return swirl(t, z)

        ndims: list[int] = []
        self.same(both, swirl, batched_time=False)
        assert set(ndims[:2]) == {0} and 1 not in ndims
        ndims.clear()
        self.same(both, swirl, batched_time=True)
        assert set(ndims) == {1}

    def test_as_many_samples_as_entries(self):
        """(B,) times broadcast against (B, B) states, silently along the wrong dimension."""

        def trap(t: Tensor, z: Tensor) -> Tensor:
            return torch.cos(t) * z + t

        z0 = torch.randn(3, 3)
        sol = solve(trap, z0, self.T, **PER)
        assert_as_alone(trap, z0, list(self.T), sol)

    def test_pairs_of_two(self):
        """The pair of samples by which fields are tried is as large as the state here."""

        def trap(t: Tensor, z: Tensor) -> Tensor:
            return torch.cos(t) * z + t

        self.same(trap)
        self.same(trap, samples=2)
        self.same(trap, samples=1)
        self.same(swirl, samples=1)
        self.same(scalar_swirl, samples=1)

    def test_a_field_that_reads_numbers_off_t_is_refused(self):
        def branching(t: Tensor, z: Tensor) -> Tensor:
            return z if t > 0.3 else -z

        with pytest.raises(InputError, match=r"under torch\.vmap, where it fails"):
            solve(branching, starts(3), self.T, **PER)

    def test_the_field_speaks_for_itself_where_it_is_wrong(self):
        with pytest.raises(FieldError, match="shape"):
            solve(lambda t, z: z[:, :1], starts(3), self.T, **PER)
        with pytest.raises(FieldError, match="shape"):
            solve(lambda z: z[:, :1], starts(3), self.T, **PER)

        def broken(t, z):
            raise RuntimeError("no such layer")

        with pytest.raises(RuntimeError, match="no such layer"):
            solve(broken, starts(3), self.T, **PER)

    @pytest.mark.parametrize("form", ["z", "tz", "scalar"])
    def test_samples_that_influence_each_other_are_refused(self, form):
        norm = nn.BatchNorm1d(2)
        fields = {
            "z": lambda z: norm(z),
            "tz": lambda t, z: norm(z) + 0 * t.reshape(-1, 1),
            "scalar": lambda t, z: norm(z) * torch.cos(t) if t.ndim == 0 else 1 / 0,
        }
        with pytest.raises(InputError, match=r"do not influence|under torch\.vmap"):
            solve(fields[form], starts(3), self.T, **PER)
        norm.eval()
        solve(fields[form], starts(3), self.T, **PER)

    @pytest.mark.parametrize("sensitivity", ["gauss", "discrete"])
    def test_fields_that_close_over_samples(self, sensitivity):
        """They can only be called with all samples, always; values and gradients are right."""
        rates = torch.tensor([[0.5], [1.0], [2.0]], requires_grad=True)
        z0, t = starts(3), torch.tensor([[0.0, 0.5], [0.0, 3.0], [1.0, 0.0]])
        options = {"sensitivity": sensitivity, "rtol": 1e-9, "atol": 1e-11, **PER}
        for field in (lambda z: -rates * z, lambda t, z: -rates * z + 0 * t.reshape(-1, 1)):
            zs = solve(field, z0, t, **options).zs
            span = (t[:, 1] - t[:, 0]).unsqueeze(1)
            want = z0 * torch.exp(-rates * span)
            torch.testing.assert_close(zs[1], want, rtol=1e-8, atol=1e-10)
            got = torch.autograd.grad(zs[1].sin().sum(), rates)
            expected = torch.autograd.grad(want.sin().sum(), rates)
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
        with pytest.raises(InputError, match="closes over"):
            solve(lambda t, z: -rates * z * torch.cos(t), z0, t, **PER)


class TestArgs:
    """Tensors of args: of all samples, or one entry a sample."""

    T = torch.tensor([[0.0, 1.0], [0.0, 4.0], [0.5, 0.0]])

    @pytest.mark.parametrize("scalar", [True, False])
    @pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2)])
    def test_one_entry_a_sample(self, scalar, shape):
        def field(t: Tensor, z: Tensor, args: dict) -> Tensor:
            assert not scalar or t.ndim == 0
            rate = args["rate"].reshape(len(z), -1)
            return -rate * z + torch.sin(t if scalar else t.reshape(-1, 1)) + args["shift"]

        z0, rate = starts(3), torch.rand(shape) + 0.5
        shift = torch.randn(2)
        sol = solve(field, z0, self.T, {"rate": rate, "shift": shift}, **PER)
        for b in range(3):
            args = {"rate": rate[b : b + 1], "shift": shift}
            alone = solve(field, z0[b : b + 1], self.T[b], args)
            torch.testing.assert_close(sol.zs[:, b], alone.zs[:, 0], rtol=1e-10, atol=1e-12)

    def test_matrices_that_happen_to_have_as_many_rows(self):
        """(3, 3) of all samples beside (3, 1) of each: not to be told apart by shape."""

        def field(t: Tensor, z: Tensor, args: Tensor) -> Tensor:
            return torch.tanh(z @ args)

        z0, matrix = torch.randn(3, 3), torch.randn(3, 3)
        sol = solve(field, z0, self.T, matrix, **PER)
        for b in range(3):
            alone = solve(field, z0[b : b + 1], self.T[b], matrix)
            torch.testing.assert_close(sol.zs[:, b], alone.zs[:, 0], rtol=1e-10, atol=1e-12)
        forced = solve(field, z0, self.T, matrix, batched_args=False, **PER)
        assert torch.equal(forced.zs, sol.zs)

    def test_mixtures_are_solved_with_all_samples_or_refused(self):
        def field(t: Tensor, z: Tensor, args: tuple) -> Tensor:
            matrix, rate = args
            return torch.tanh(z @ matrix) * rate + 0 * t.reshape(-1, 1)

        z0 = torch.randn(3, 3)
        args = torch.randn(3, 3), torch.rand(3, 1) + 0.5
        sol = solve(field, z0, self.T, args, **PER)
        for b in range(3):
            own = args[0], args[1][b : b + 1]
            alone = solve(field, z0[b : b + 1], self.T[b], own)
            torch.testing.assert_close(sol.zs[:, b], alone.zs[:, 0], rtol=1e-10, atol=1e-12)

        def scalar(t: Tensor, z: Tensor, args: tuple) -> Tensor:
            assert t.ndim == 0
            return torch.tanh(z @ args[0]) * args[1]

        with pytest.raises(InputError, match=r"as many rows.*x\[None\]"):
            solve(scalar, z0, self.T, args, **PER)

    def test_none_to_slice(self):
        with pytest.raises(InputError, match="no tensor in args has first dimension 3"):
            solve(lambda t, z, a: a * z, starts(3), self.T, torch.ones(2), batched_args=True, **PER)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("scalar", [False, True])
def test_jacobians(given, scalar):
    """Given or not, of fields of (n,) and of scalar times, with args of each sample."""

    def field(t: Tensor, z: Tensor, k: Tensor) -> Tensor:
        assert not scalar or t.ndim == 0
        x, y = z[:, 0], z[:, 1]
        return torch.stack([y + torch.sin(t), k * (1 - x * x) * y - x], dim=1)

    def jac(t: Tensor, z: Tensor, k: Tensor) -> Tensor:
        assert not scalar or t.ndim == 0
        x, y = z[:, 0], z[:, 1]
        rows = [torch.zeros_like(x), torch.ones_like(x), -2 * k * x * y - 1, k * (1 - x * x)]
        return torch.stack(rows, dim=1).reshape(-1, 2, 2)

    z0, k = starts(4), torch.tensor([1.0, 5.0, 20.0, 100.0])
    t = torch.tensor([[0.0, 3.0], [0.0, 1.0], [1.0, 9.0], [0.0, 10.0]])
    options = {"solver": "rodas4", "rtol": 1e-5, "jac": jac if given else None}
    sol = solve(field, z0, t, k, **PER, **options)
    for b in range(4):
        alone = solve(field, z0[b : b + 1], t[b], k[b : b + 1], **options)
        torch.testing.assert_close(sol.zs[:, b], alone.zs[:, 0], rtol=1e-7, atol=1e-9)
        assert int(sol.samples.accepted[b]) == alone.stats.accepted
    bad = {**options, "jac": lambda t, z, k: torch.zeros(5, 2, 2)}
    with pytest.raises(InputError, match="jac returned shape"):
        solve(field, z0, t, k, batched_time=not scalar, **PER, **bad)


class TestDenseOutput:
    T = torch.tensor([[0.0, 2.0], [1.0, -1.0], [0.5, 1.5]])

    @pytest.mark.parametrize("solver", ["tsit5", "vern7", "dop853", "rodas5p", "bs3"])
    def test_equals_each_sample_alone(self, solver):
        z0 = starts(3)
        with torch.no_grad():
            sol = solve(swirl, z0, self.T, solver=solver, **PER)
            s = torch.rand(2, 4, 3) * (self.T[:, 1] - self.T[:, 0]) + self.T[:, 0]
            got = sol(s)
            assert got.shape == (2, 4, 3, 2)
            for b in range(3):
                alone = solve(swirl, z0[b : b + 1], self.T[b], solver=solver)
                want = alone(s[..., b])[..., 0, :]
                torch.testing.assert_close(got[..., b, :], want, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(sol(self.T[:, 0]), z0, rtol=0, atol=0)
            torch.testing.assert_close(sol(self.T[:, 1]), sol.zs[-1], rtol=1e-12, atol=1e-13)

    def test_shapes(self):
        with torch.no_grad():
            sol = solve(swirl, starts(3), self.T, **PER)
            assert sol(0.7).shape == (3, 2)
            torch.testing.assert_close(sol(torch.tensor([[0.7], [0.9]]))[0], sol(0.7))
            with pytest.raises(InputError, match="last dimension"):
                sol(torch.tensor([0.7, 0.9]))
            with pytest.raises(InputError, match=r"outside the span \[0.5, 1.5\] of sample 2"):
                sol(torch.tensor([0.1, 0.1, 0.1]))

    def test_failed_samples(self):
        z0 = torch.tensor([[0.25], [1.0], [NAN]])
        with torch.no_grad():
            sol = solve(lambda z: z * z, z0, [0.0, 2.0], throw=False, max_steps=500, **PER)
            assert sol(0.5)[:2].isfinite().all() and sol(1.9)[0].isfinite()
            assert sol(1.9)[1:].isnan().all()

    def test_gradients(self):
        z0 = starts(3).requires_grad_()
        sol = solve(swirl, z0, self.T, sensitivity="discrete", **PER)
        s = self.T.mean(dim=1)
        got = torch.autograd.grad(sol(s).sum(), z0)
        t = torch.stack([self.T[:, 0], s], dim=1)
        want = torch.autograd.grad(
            solve(swirl, z0, t, sensitivity="discrete", **PER).zs[1].sum(), z0
        )
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        with pytest.raises(GradientError, match="sol"):
            solve(swirl, z0, self.T, **PER)(s)


class TestBadInput:
    @pytest.mark.parametrize("name", ["interpolating", "backsolve", "quadrature"])
    def test_sensitivities(self, name):
        with pytest.raises(InputError, match="'gauss' or 'discrete'"):
            solve(swirl, starts(), [0.0, 1.0], sensitivity=name, **PER)

    def test_options(self):
        with pytest.raises(InputError, match="checkpoints"):
            solve(swirl, starts(), [0.0, 1.0], sensitivity="discrete", checkpoints=3, **PER)
        with pytest.raises(InputError, match="batched_time= has a meaning only"):
            solve(swirl, starts(), [0.0, 1.0], batched_time=True)

    def test_no_batch(self):
        with pytest.raises(InputError, match="need a batch"):
            solve(lambda z: -z, torch.tensor(1.0), [0.0, 1.0], **PER)
        single = solve(lambda z: -z, torch.tensor([1.0, 2.0]), [0.0, 1.0], **PER)
        assert single.samples.accepted.shape == (2,)

    @pytest.mark.parametrize(
        "t, t0, words",
        [
            ([[0.0, 1.0], [0.0, 1.0, 0.5]], None, "sample 1, .*sort them"),
            ([[0.0, 1.0], [2.0, 1.0, 1.5]], None, "sample 1 go up and down"),
            ([[0.0, 1.0], [1.0, 2.0]], [0.0, 1.5], "sample 1 go up and down"),
            ([[0.0, 1.0]], None, "times for 1 samples"),
            ([[1.0], [2.0]], None, "two or more distinct"),
            ([[0.0, 1.0], [1.0, 2.0]], [0.0, 1.0, 2.0], "t0 must be"),
            ([[0.0, 1.0], [1.0, 2.0]], [0.0, NAN], "t0 must be"),
        ],
    )
    def test_times(self, t, t0, words):
        rows = [torch.tensor(row) for row in t]
        t0 = None if t0 is None else torch.tensor(t0)
        with pytest.raises(InputError, match=words):
            solve(swirl, starts(2), rows, t0=t0, **PER)

    def test_a_joint_solve_still_wants_one_initial_time(self):
        with pytest.raises(InputError, match="first times differ"):
            solve(swirl, starts(2), torch.tensor([[0.0, 1.0], [1.0, 2.0]]))

    def test_transforms(self):
        with pytest.raises(GradientError, match=r"torch\.func"):
            torch.func.grad(
                lambda z: solve(swirl, z, [0.0, 1.0], sensitivity="discrete", **PER).zs.sum()
            )(starts())


class TestEnsemble:
    def test_own_parameters(self):
        def lotka(t: Tensor, z: Tensor, p: dict) -> Tensor:
            x, y = z[:, 0], z[:, 1]
            a, b = p["a"], p["bc"]
            return torch.stack([a * x - b[:, 0] * x * y, b[:, 1] * x * y - y], dim=1)

        z0, t = torch.rand(50, 2) + 0.5, torch.linspace(0, 5, 6)
        params = {"a": torch.rand(50) + 0.5, "bc": torch.rand(50, 2) + 0.5}
        sol = ensemble(lotka, z0, t, params, rtol=1e-6)
        assert sol.zs.shape == (6, 50, 2) and sol.samples.accepted.shape == (50,)
        for b in (0, 17, 49):
            own = {k: v[b : b + 1] for k, v in params.items()}
            alone = solve(lotka, z0[b : b + 1], t, own, rtol=1e-6)
            torch.testing.assert_close(sol.zs[:, b], alone.zs[:, 0], rtol=1e-10, atol=1e-12)

    def test_gradients_of_parameters(self):
        p = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        z0, t = torch.ones(3, 1), torch.tensor([0.0, 1.0])
        zs = ensemble(lambda t, z, p: -p.unsqueeze(1) * z, z0, t, p, rtol=1e-9, atol=1e-11).zs
        (grad,) = torch.autograd.grad(zs[-1].sum(), p)
        torch.testing.assert_close(grad, -torch.exp(-p.detach()), rtol=1e-7, atol=0)

    def test_no_parameters(self):
        assert ensemble(lambda z: -z, torch.ones(4, 1), [0.0, 1.0]).success

    @pytest.mark.parametrize(
        "z0, params, words",
        [
            (torch.ones(3, 1), torch.ones(2), "there are 3 trajectories"),
            (torch.ones(3, 1), 2.0, "not float"),
            (torch.tensor(1.0), None, "not a number"),
            ((torch.ones(3), torch.ones(2)), None, "there are 3 trajectories"),
        ],
    )
    def test_bad_input(self, z0, params, words):
        with pytest.raises(InputError, match=words):
            ensemble(lambda t, z, p=None: z, z0, [0.0, 1.0], params)
        with pytest.raises(InputError, match="step by themselves"):
            ensemble(lambda z: z, torch.ones(2, 1), [0.0, 1.0], step_control="joint")


@st.composite
def problems(draw: st.DrawFn):
    samples, width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z0 = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    rows = []
    for _ in range(samples):
        gaps = draw(st.lists(st.floats(1e-3, 0.7), min_size=1, max_size=4))
        sign, first = draw(st.sampled_from([1.0, -1.0])), draw(st.sampled_from([0.0, 2.5, -1.3]))
        rows.append(first + sign * torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0))
    return z0, rows


@settings(max_examples=25)
@given(
    problem=problems(),
    solver=st.sampled_from([name for name, adaptive in SOLVERS if adaptive]),
    tstops=st.lists(st.sampled_from([0.1, 1.0, 2.4, -1.5]), max_size=2),
)
def test_any_problem_as_each_sample_alone(problem, solver, tstops):
    z0, rows = problem

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.cos(2 * z + t) - 0.5 * z.flip(-1)

    options = {"rtol": 1e-4, "atol": 1e-5, "solver": solver, "tstops": tstops}
    with torch.no_grad():
        sol = solve(field, z0, rows, **PER, **options)
        assert_as_alone(field, z0, rows, sol, **options)
