"""Events with steps per sample: each sample as if it were solved alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from pynode import Event, NeuralODE, Retcode, Solution, solve
from pynode.errors import EventError, GradientError, SolveError

pytestmark = pytest.mark.usefixtures("float64")
PER = {"step_control": "per_sample"}
TIGHT = {"rtol": 1e-11, "atol": 1e-12}
SIGNS = [1.0, -1.0, 1.0]
POINTS = [
    [1.0, 0.5, 9.0, 0.8, 0.1, 1.9],
    [1.0, 0.4, 8.0, 0.75, 0.12, 1.95],
    [0.8, 0.6, 8.5, 0.7, 0.05, 1.85],
]


def driven_balls(x: Tensor, signs: Tensor, **options) -> Solution:
    """Balls over a moving floor, for x (B, 6): height, speed, gravity, restitution, t0, last time.

    For x (6,) and a 0-d sign one ball, by joint steps.
    """

    def field(t: Tensor, z: Tensor, args: dict) -> Tensor:
        drag = 0.3 * z[..., 1] * torch.cos(t)
        return args["sign"][..., None] * torch.stack([z[..., 1], -args["g"] - drag], dim=-1)

    def jump(t: Tensor, z: Tensor, args: dict) -> Tensor:
        return torch.stack([z[..., 0], -args["e"] * z[..., 1] * (1 + 0.1 * t)], dim=-1)

    events = [
        Event(lambda t, z: z[..., 0] - 0.05 * torch.sin(t), direction=-1, jump=jump),
        Event(lambda t, z: z[..., 1], direction=-1, terminal=False),
    ]
    args = {"g": x[..., 2], "e": x[..., 3], "sign": signs}
    times = torch.cat(
        [signs[..., None] * torch.linspace(0.3, 1.5, 4), (signs * x[..., 5])[..., None]], dim=-1
    )
    if x.ndim == 2:
        options = {"batched_args": True, **PER, **options}
    return solve(
        field, x[..., :2], times, args, t0=signs * x[..., 4], events=events, **{**TIGHT, **options}
    )


@pytest.mark.parametrize("solver", ["tsit5", "dop853", "rodas5p"])
def test_equals_each_sample_alone(solver):
    """Times of their own, one of them backwards; with jumps and events that are only recorded."""
    x, signs = torch.tensor(POINTS), torch.tensor(SIGNS)
    options = {"solver": solver}
    if solver == "rodas5p":
        options |= {"rtol": 1e-9, "atol": 1e-11}
    sol = driven_balls(x, signs, **options)
    assert sol.retcode is Retcode.SUCCESS and sol.retcodes == [Retcode.SUCCESS] * 3
    for b in range(3):
        one = driven_balls(x[b], signs[b], **options)
        for record, alone in zip(sol.events, one.events, strict=True):
            own = record.of(b)
            assert len(own) == len(alone) >= 1
            torch.testing.assert_close(own.times, alone.times, rtol=0, atol=1e-9)
            torch.testing.assert_close(own.states, alone.states, rtol=0, atol=1e-8)
            torch.testing.assert_close(own.states_after, alone.states_after, rtol=0, atol=1e-8)
        torch.testing.assert_close(sol.zs[:, b], one.zs, rtol=0, atol=1e-8)
        torch.testing.assert_close(sol.t_final[b], one.t_final)
        torch.testing.assert_close(sol.z_final[b], one.z_final, rtol=0, atol=1e-8)
        s = torch.linspace(float(x[b, 4]), float(x[b, 5]), 40) * signs[b]
        with torch.no_grad():
            everyone = torch.stack([x[:, 4] * signs] * len(s)).clone()
            everyone[:, b] = s
            torch.testing.assert_close(sol(everyone)[:, b], one(s), rtol=0, atol=1e-8)
        steps = sol.samples.accepted[b] + sol.samples.rejected[b]
        assert abs(int(steps) - one.stats.accepted - one.stats.rejected) <= 2


@pytest.mark.parametrize("seed", range(6))
def test_random_events_equal_each_sample_alone(seed):
    """Terminal, jumping and recorded ones, in any order, in systems of random directions."""
    torch.manual_seed(seed)
    count = (1, 2, 5)[seed % 3]
    matrix, level = torch.randn(2, 2), torch.rand(3) - 0.5
    matrix = 1.5 * (matrix - matrix.T) + 0.1 * matrix
    speed, z0, t0 = torch.rand(count) * 3 + 0.5, torch.randn(count, 2), torch.rand(count)
    sign = (torch.rand(count) > 0.4).double() * 2 - 1
    times = t0[:, None] + sign[:, None] * torch.rand(count, 5).cumsum(1)
    order, direction = torch.randperm(3).tolist(), (torch.rand(3) > 0.5).long() * 2 - 1

    def field(t: Tensor, z: Tensor, speed: Tensor) -> Tensor:
        return speed[..., None] * (z @ matrix) + 0.2 * torch.sin(t)[..., None]

    def jump(t: Tensor, z: Tensor) -> Tensor:
        return z * torch.tensor([-0.7, 0.8]) + 0.05

    def crosses(t: Tensor, z: Tensor, speed: Tensor) -> Tensor:
        return z[..., 1] * speed - level[1]

    ways = [int(x) for x in direction]
    kinds = [
        Event(lambda t, z: z[..., 0] - level[0], terminal=False),
        Event(crosses, direction=ways[1], jump=jump),
        Event(lambda t, z: (z**2).sum(-1) - 3.0 - level[2], direction=ways[2]),
    ]
    events = [kinds[i] for i in order]
    options = {"rtol": 1e-9, "atol": 1e-10, "solver": ("tsit5", "dop853")[seed % 2]}
    sol = solve(field, z0, times, speed, t0=t0, events=events, batched_args=True, **options, **PER)
    for b in range(count):
        one = solve(field, z0[b], times[b], speed[b], t0=float(t0[b]), events=events, **options)
        assert sol.retcodes[b] is one.retcode
        torch.testing.assert_close(sol.zs[:, b], one.zs, rtol=0, atol=1e-9, equal_nan=True)
        torch.testing.assert_close(sol.t_final[b], one.t_final, rtol=0, atol=1e-9)
        for record, alone in zip(sol.events, one.events, strict=True):
            own = record.of(b)
            torch.testing.assert_close(own.times, alone.times, rtol=0, atol=1e-9)
            torch.testing.assert_close(own.states_after, alone.states_after, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def by_differences():
    torch.set_default_dtype(torch.float64)
    point, h = torch.tensor(POINTS), 1e-6
    with torch.no_grad():
        columns = []
        for e in torch.eye(18).reshape(18, 3, 6):
            high, low = (
                everything(driven_balls(point + s * e, torch.tensor(SIGNS))) for s in (h, -h)
            )
            columns.append((high - low) / (2 * h))
    torch.set_default_dtype(torch.float32)
    return torch.stack(columns, dim=1)


def everything(sol: Solution) -> Tensor:
    parts = [sol.zs, sol.t_final, sol.z_final]
    for record in sol.events:
        parts += [record.times, record.states, record.states_after]
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
@pytest.mark.parametrize("solver", ["tsit5", "dop853", "rodas5p"])
def test_gradients(by_differences, solver, sensitivity):
    """Of outputs, event times, states before and after, and ends, in all that matters."""
    x = torch.tensor(POINTS, requires_grad=True)
    options = {"rtol": 1e-8, "atol": 1e-10} if solver == "rodas5p" else {}
    sol = driven_balls(x, torch.tensor(SIGNS), solver=solver, sensitivity=sensitivity, **options)
    y = everything(sol)
    weights = torch.linspace(0.5, 1.5, len(y))
    (grad,) = torch.autograd.grad((weights * y).sum(), x)
    wanted = (weights @ by_differences).view_as(grad)
    torch.testing.assert_close(grad, wanted, rtol=2e-6, atol=1e-5)


class Gate(nn.Module):
    """Parameters in field, condition and jump."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.level = nn.Parameter(torch.tensor(0.6))
        self.gain = nn.Parameter(torch.tensor([0.5, 1.5]))

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z) + 1.0


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_gradients_of_parameters_equal_each_sample_alone(sensitivity):
    torch.manual_seed(0)
    gate, z0, times = Gate(), torch.rand(4, 2) * 0.5, [0.0, 1.0, 2.0]
    event = Event(lambda t, z: z[..., 0] - gate.level, jump=lambda t, z: gate.gain * z - 1.0)

    def loss(sol: Solution) -> Tensor:
        return sol.zs.square().sum() + sol.events[0].times.sin().sum()

    node = NeuralODE(gate, sensitivity=sensitivity, **TIGHT, **PER)
    sol = node.solve(z0, times, events=[event])
    assert len(sol.events[0]) >= 4
    got = torch.autograd.grad(loss(sol), [*gate.parameters()])
    alone = NeuralODE(gate, sensitivity="discrete", **TIGHT)
    total = sum(loss(alone.solve(z, times, events=[event])) for z in z0)
    wanted = torch.autograd.grad(total, [*gate.parameters()])
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-7, atol=1e-8)


def test_second_derivatives_across_events_are_refused():
    x = torch.tensor(POINTS, requires_grad=True)
    sol = driven_balls(x, torch.tensor(SIGNS), sensitivity="discrete", rtol=1e-6, atol=1e-8)
    (grad,) = torch.autograd.grad(sol.events[0].times.sum(), x, create_graph=True)
    with pytest.raises(GradientError, match="first derivatives only"):
        torch.autograd.grad(grad.sum(), x)


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z


@pytest.mark.parametrize("solver", ["tsit5", "dop853", "rodas5p", "rk4"])
def test_terminal_events_end_their_sample_alone(solver):
    """Each at log(z0 / level); one starts below the level, one at it, one does not get there."""
    z0 = torch.tensor([[2.0], [0.3], [8.0], [1.0], [100.0]])
    times = torch.linspace(0.0, 4.0, 9)
    options = {"solver": solver, **TIGHT}
    if solver == "rk4":
        options = {"solver": solver, "dt": 0.01}
    elif solver == "rodas5p":
        options |= {"rtol": 1e-10}
    sol = solve(decay, z0, times, events=[Event(lambda t, z: z[:, 0] - 1.0)], **options, **PER)
    plain = solve(decay, z0, times, **options, **PER)
    terminated, success = Retcode.TERMINATED, Retcode.SUCCESS
    assert sol.retcodes == [terminated, success, terminated, success, success]
    assert sol.retcode is success and sol.success
    ends = [math.log(2), 4.0, math.log(8), 4.0, 4.0]
    assert sol.t_final.tolist() == pytest.approx(ends, abs=1e-9)
    assert sol.samples.t.tolist() == sol.t_final.tolist()
    assert sol.z_final[[0, 2], 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    assert sol.samples.outputs.tolist() == [2, 9, 5, 9, 9]
    for b in range(5):
        n = int(sol.samples.outputs[b])
        assert sol.zs[n:, b].isnan().all()
        torch.testing.assert_close(sol.zs[:n, b], plain.zs[:n, b], rtol=1e-13, atol=1e-15)
    assert sol.events[0].entries.tolist() == [0, 2]
    assert sol.samples.accepted[0] < plain.samples.accepted[0]
    assert sol(torch.tensor([0.5, 4.0, 2.0, 4.0, 4.0]))[0, 0].item() == pytest.approx(
        2 * math.exp(-0.5), abs=1e-8
    )
    assert sol(1.0).isnan().any(dim=1).tolist() == [True, False, False, False, False]
    ended = solve(decay, z0[[0, 2]], times, events=[Event(lambda t, z: z[:, 0] - 1.0)], **PER)
    assert ended.retcode is terminated


def test_gradient_of_a_terminal_time():
    """dt*/dz0 = 1/z0, and nothing of a sample reaches another."""
    z0 = torch.tensor([[2.0], [0.3], [8.0]], requires_grad=True)
    for sensitivity in ("discrete", "gauss"):
        event = Event(lambda t, z: z[:, 0] - 1.0)
        sol = solve(decay, z0, [0.0, 3.0], events=[event], sensitivity=sensitivity, **TIGHT, **PER)
        (grad,) = torch.autograd.grad(sol.events[0].times.sum(), z0, retain_graph=True)
        torch.testing.assert_close(grad, torch.tensor([[0.5], [0.0], [0.125]]))
        (grad,) = torch.autograd.grad(sol.z_final.sum() + sol.zs[-1].nansum(), z0)
        torch.testing.assert_close(grad, torch.tensor([[0.0], [2 * math.exp(-3)], [0.0]]))


def test_many_crossings_in_one_step():
    """Different ones in each sample; a condition that is zero at t0 fires after leaving zero."""
    roots = torch.tensor([[4.0, 4.3, 9.0], [4.0, 4.00001, 5.0], [0.0, 2.0, 2.5]])
    sol = solve(
        lambda t, z: torch.ones_like(z),
        torch.zeros(3),
        [0.0, 10.0],
        events=[Event(lambda t, z: (z[:, None] - roots).prod(dim=1), terminal=False)],
        solver="rk4",
        dt=10.0,
        **PER,
    )
    assert sol.samples.accepted.tolist() == [1, 1, 1]
    for b, wanted in enumerate([[4.0, 4.3, 9.0], [4.0, 4.00001, 5.0], [2.0, 2.5]]):
        assert sol.events[0].of(b).times.tolist() == pytest.approx(wanted, abs=1e-9)
    assert sol.events[0].entries.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_detection_changes_nothing_where_no_event_fires():
    z0 = torch.rand(5, 3) + 1.0
    never = Event(lambda t, z: z[:, 0] + 10.0)
    plain = solve(decay, z0, [0.0, 1.0, 3.0], **PER)
    watched = solve(decay, z0, [0.0, 1.0, 3.0], events=[never], **PER)
    assert torch.equal(plain.zs, watched.zs)
    assert watched.stats.nfe == plain.stats.nfe
    assert torch.equal(watched.samples.nfe, plain.samples.nfe)
    assert watched.retcode is Retcode.SUCCESS and len(watched.events[0]) == 0
    assert watched.events[0].states.shape == (0, 3)


def test_several_events_of_one_sample_at_one_time():
    """In the order of the events; in sample 1 only one of them fires."""
    double = Event(lambda t, z: z[:, 0] - 1.0, jump=lambda t, z: 2 * z, name="double")
    less = Event(
        lambda t, z: z[:, 0] - torch.tensor([1.0, 50.0]), jump=lambda t, z: z - 0.5, name="less"
    )
    sol = solve(
        lambda t, z: torch.ones_like(z), torch.zeros(2, 1), [0.0, 2.0], events=[double, less], **PER
    )
    assert sol.events[0].entries.tolist() == [0, 1]
    assert sol.events[1].entries.tolist() == [0]
    assert sol.events[0].states_after.reshape(-1).tolist() == pytest.approx([2.0, 2.0])
    assert sol.events[1].states_after.reshape(-1).tolist() == pytest.approx([1.5])
    assert sol.zs[-1, :, 0].tolist() == pytest.approx([2.5, 3.0])


def floor(**options) -> Event:
    return Event(
        lambda t, z: z[..., 0],
        direction=-1,
        jump=lambda t, z: torch.stack([z[..., 0], -0.5 * z[..., 1]], dim=-1),
        name="floor",
        **options,
    )


def falling(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([z[..., 1], torch.full_like(z[..., 1], -9.81)], dim=-1)


def test_accumulating_events_end_their_sample_alone():
    """A ball from 1 m comes to rest after 1.35 s; one from 100 m is in its first flights."""
    z0 = torch.tensor([[100.0, 0.0], [1.0, 0.0]])
    sol = solve(falling, z0, [0.0, 5.0], events=[floor()], throw=False, **PER)
    assert sol.retcodes == [Retcode.SUCCESS, Retcode.MAX_EVENTS]
    assert sol.retcode is Retcode.MAX_EVENTS and not sol.success
    assert sol.samples.t[1].item() == pytest.approx(3 * math.sqrt(2 / 9.81), abs=1e-3)
    assert "sample 1" in sol.message and "comes to rest" in sol.message
    assert sol.zs[-1, 0].isfinite().all() and sol.zs[-1, 1].isnan().all()
    with pytest.raises(SolveError, match="comes to rest") as caught:
        solve(falling, z0, [0.0, 5.0], events=[floor()], **PER)
    assert caught.value.sample == 1


def test_max_events_are_of_each_sample():
    z0 = torch.tensor([[100.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    options = {"events": [floor()], "max_events": 3, "throw": False}
    sol = solve(falling, z0, [0.0, 5.0], **options, **PER)
    assert sol.retcodes == [Retcode.SUCCESS, Retcode.MAX_EVENTS, Retcode.MAX_EVENTS]
    assert "max_events=3" in sol.samples.messages[1] and "2 of 3 samples" in sol.message
    alone = solve(falling, z0[1], [0.0, 5.0], **options)
    assert alone.retcode is Retcode.MAX_EVENTS
    assert len(sol.events[0].of(1)) == len(alone.events[0])


def test_max_steps_are_of_the_whole_solve_of_a_sample():
    z0 = torch.tensor([[20.0, 0.0], [1.0, 0.0]])
    options = {"dt": 0.01, "solver": "rk4", "max_steps": 104, "throw": False}
    sol = solve(falling, z0, [0.0, 1.0], events=[floor()], **options, **PER)
    alone = solve(falling, z0[1], [0.0, 1.0], events=[floor()], **options)
    assert alone.retcode is Retcode.SUCCESS
    assert sol.retcodes == [Retcode.SUCCESS] * 2
    options["max_steps"] = 100
    sol = solve(falling, z0, [0.0, 1.0], events=[floor()], **options, **PER)
    alone = solve(falling, z0[1], [0.0, 1.0], events=[floor()], **options)
    assert alone.retcode is Retcode.MAX_STEPS
    assert sol.retcodes == [Retcode.SUCCESS, Retcode.MAX_STEPS]
    assert sol.samples.t[1].item() == pytest.approx(alone.t_final.item())


def test_a_sample_that_fails_leaves_the_others_alone():
    """z' = z² blows up at 1/z0."""
    z0 = torch.tensor([[1.0], [0.1]], requires_grad=True)
    event = Event(lambda t, z: z[:, 0] - 0.2, jump=lambda t, z: 0.5 * z)
    sol = solve(
        lambda t, z: z**2, z0, [0.0, 8.0], events=[event], max_steps=200, throw=False, **PER
    )
    assert sol.retcodes[0] in (Retcode.MAX_STEPS, Retcode.DT_UNDERFLOW, Retcode.NON_FINITE)
    assert sol.retcodes[1] is Retcode.SUCCESS and sol.samples.failed == [0]
    assert sol.zs[-1, 0].isnan().all()
    (grad,) = torch.autograd.grad(sol.zs[-1, 1].sum(), z0)
    # From 0.1 the level 0.2 is met after 5; then 0.1 / (1 - 0.1·3). dt*/dz0 = -1/z0².
    assert sol.zs[-1, 1].item() == pytest.approx(0.1 / 0.7, rel=1e-5)
    slope = (0.1 / 0.7) ** 2 / 0.1**2
    assert grad.tolist() == [[0.0], [pytest.approx(slope, rel=1e-4)]]


def test_a_sample_that_begins_with_nan_fails_alone():
    z0 = torch.tensor([[math.nan], [2.0]])
    event = Event(lambda t, z: z[:, 0] - 1.0)
    sol = solve(decay, z0, [0.0, 3.0], events=[event], throw=False, **PER)
    assert sol.retcodes == [Retcode.NON_FINITE, Retcode.TERMINATED]
    assert sol.t_final[1].item() == pytest.approx(math.log(2), rel=1e-5)


def test_structures_args_and_a_field_that_closes_over_the_batch():
    rate = torch.tensor([1.0, 2.0, 4.0])

    def field(t: Tensor, z: dict) -> dict:
        return {"a": 1j * rate * z["a"], "b": torch.ones_like(z["b"])}

    event = Event(
        lambda t, z, args: z["a"].real - args,
        direction=-1,
        jump=lambda t, z, args, mask: {"b": torch.zeros_like(z["b"]), "a": z["a"]},
    )
    z0 = {"a": torch.ones(3, dtype=torch.complex128), "b": torch.zeros(3, 2)}
    sol = solve(
        lambda t, z, args: field(t, z), z0, [0.0, 1.7], torch.tensor(0.0), events=[event], **TIGHT,
        **PER,
    )  # fmt: skip
    record = sol.events[0]
    wanted = [math.pi / 2, math.pi / 4, math.pi / 8]
    assert [record.of(b).times[0].item() for b in range(3)] == pytest.approx(wanted, abs=1e-9)
    assert record.states["b"].shape == (len(record), 2) and record.states["a"].shape == (
        len(record),
    )
    after = [sol.zs["b"][-1, b, 0].item() for b in range(2)]
    assert after == pytest.approx([1.7 - math.pi / 2, 1.7 - math.pi / 4], abs=1e-9)


def test_float32():
    z0 = torch.tensor([[2.0], [8.0]], dtype=torch.float32)
    for times in ([0.0, 4.0], torch.tensor([0.0, 4.0], dtype=torch.float32)):
        sol = solve(decay, z0, times, events=[Event(lambda t, z: z[:, 0] - 1.0)], **PER)
        assert sol.retcode is Retcode.TERMINATED
        assert sol.t_final.tolist() == pytest.approx([math.log(2), math.log(8)], rel=1e-5)


@pytest.mark.parametrize(
    "condition, message",
    [
        (lambda t, z: z.sum(), r"shape \(\) for 2 samples"),
        (lambda t, z: z, r"shape \(2, 1\) for 2 samples"),
        (lambda t, z: z[:, 0] > 1, "dtype torch.bool"),
        (lambda t, z: (z[:, 0] - 1.5).log(), r"NaN or infinite at t=.*sample 0"),
        (lambda t, z: 1.0, "a float"),
    ],
)
def test_bad_conditions(condition, message):
    with pytest.raises(EventError, match=message):
        solve(decay, torch.tensor([[2.0], [8.0]]), [0.0, 1.0], events=[Event(condition)], **PER)


def test_bad_jumps():
    for jump, message in (
        (lambda t, z: z[:, 0], "return a state"),
        (lambda t, z: z / 0.0, "NaN or infinity at t="),
    ):
        event = Event(lambda t, z: z[:, 0] - 1.5, jump=jump)
        with pytest.raises(EventError, match=message):
            solve(decay, torch.tensor([[2.0], [0.1]]), [0.0, 1.0], events=[event], **PER)


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_a_touch_has_no_derivative_in_its_sample_alone(sensitivity):
    """(t - 1)³ crosses zero with no slope; (t - 1) with one."""
    z0 = torch.zeros(2, 1, requires_grad=True)
    event = Event(lambda t, z: torch.stack([(t[0] - 1.0) ** 3, t[1] - 1.0]) + 0.0 * z[:, 0])
    sol = solve(
        lambda t, z: torch.ones_like(z), z0, [0.0, 2.0], events=[event], sensitivity=sensitivity,
        tstops=[1.0], **PER,
    )  # fmt: skip
    assert sol.t_final.tolist() == [1.0, 1.0]
    torch.autograd.grad(sol.t_final[1], z0, retain_graph=True)
    with pytest.raises(GradientError, match=r"sample 0.*no slope"):
        torch.autograd.grad(sol.t_final[0], z0)
