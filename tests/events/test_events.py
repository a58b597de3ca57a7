"""Events: where they are found, what they do, and how they fail."""

import math

import pytest
import torch
from torch import Tensor, nn

from pynode import Event, NeuralODE, ODEProblem, Retcode, solve
from pynode.errors import EventError, GradientError, InputError, SolveError

pytestmark = pytest.mark.usefixtures("float64")

TIGHT = {"rtol": 1e-11, "atol": 1e-13}
GRAVITY = 9.81


def oscillator(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([z[1], -z[0]])


def falling(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([z[1], torch.full_like(z[1], -GRAVITY)])


def clock(t: Tensor, z: Tensor) -> Tensor:
    """z = t, so that one step of any size is exact."""
    return torch.ones_like(z)


def floor(restitution: float, **options) -> Event:
    return Event(
        lambda t, z: z[0],
        direction=-1,
        jump=lambda t, z: torch.stack([z[0], -restitution * z[1]]),
        name="floor",
        **options,
    )


def bounces(height: float, restitution: float, count: int) -> list[float]:
    """When a ball dropped from a height hits the floor."""
    times = [math.sqrt(2 * height / GRAVITY)]
    for k in range(1, count):
        times.append(times[-1] + 2 * times[0] * restitution**k)
    return times


@pytest.mark.parametrize("solver", ["tsit5", "vern7", "dop853"])
def test_crossings_of_the_oscillator(solver):
    """sin t crosses zero at multiples of π, falling at odd ones."""
    events = [
        Event(lambda t, z: z[0], direction=d, terminal=False, name=str(d)) for d in (0, 1, -1)
    ]
    sol = solve(
        oscillator, torch.tensor([0.0, 1.0]), [0.0, 10.0], events=events, solver=solver, **TIGHT
    )
    both, up, down = (record.times.tolist() for record in sol.events)
    assert both == pytest.approx([math.pi, 2 * math.pi, 3 * math.pi], abs=1e-10)
    assert up == pytest.approx([2 * math.pi], abs=1e-10)
    assert down == pytest.approx([math.pi, 3 * math.pi], abs=1e-10)
    cosines = sol.events[0].states[:, 1].tolist()
    assert cosines == pytest.approx([-1.0, 1.0, -1.0], abs=1e-10)
    assert sol.retcode is Retcode.SUCCESS


def test_backwards_in_time_direction_is_that_of_integration():
    events = [Event(lambda t, z: z[0], direction=d, terminal=False) for d in (1, -1)]
    sol = solve(oscillator, torch.tensor([0.0, 1.0]), [0.0, -7.0], events=events, **TIGHT)
    assert sol.events[0].times.tolist() == pytest.approx([-math.pi], abs=1e-10)
    assert sol.events[1].times.tolist() == pytest.approx([-2 * math.pi], abs=1e-10)


def test_detection_costs_no_evaluations_of_the_field():
    z0 = torch.tensor([0.0, 1.0])
    plain = solve(oscillator, z0, [0.0, 10.0])
    watched = solve(oscillator, z0, [0.0, 10.0], events=[Event(lambda t, z: z[0], terminal=False)])
    assert watched.stats.nfe == plain.stats.nfe
    assert watched.stats.conditions > watched.stats.accepted
    assert torch.equal(watched.zs, plain.zs)


@pytest.mark.parametrize("solver", ["euler", "tsit5", "dop853"])
@pytest.mark.parametrize("roots", [(4.0, 4.3), (4.0, 4.00001), (1.0, 4.0, 4.1), (0.1, 5.0, 9.9)])
def test_many_crossings_in_one_step(solver, roots):
    """A polynomial in the state: every root is found though the step's ends may not show them."""

    def condition(t: Tensor, z: Tensor) -> Tensor:
        return math.prod(z[0] - root for root in roots)

    sol = solve(
        clock,
        torch.zeros(1),
        [0.0, 10.0],
        events=[Event(condition, terminal=False)],
        solver=solver,
        adaptive=False,
        dt=10.0,
    )
    assert sol.stats.accepted == 1
    assert sol.events[0].times.tolist() == pytest.approx(list(roots), abs=1e-9)


def test_dips_narrower_than_the_steps_are_found():
    """A linear condition that dips below zero for a hundredth of a step."""
    sol = solve(
        lambda t, z: (2 * (t - 5)).expand(1),
        torch.tensor([25.0]),
        [0.0, 10.0],
        events=[Event(lambda t, z: z[0] - 1e-6, terminal=False)],
        dt=10.0,
        adaptive=False,
        solver="rk4",
    )
    assert sol.stats.accepted == 1
    assert sol.events[0].times.tolist() == pytest.approx([5 - 1e-3, 5 + 1e-3], abs=1e-9)


@pytest.mark.parametrize("gap, count", [(1e-9, 0), (-1e-9, 2)])
def test_near_a_tangent(gap, count):
    def condition(t: Tensor, z: Tensor) -> Tensor:
        return (z[0] - 1) ** 2 + gap

    sol = solve(clock, torch.zeros(1), [0.0, 3.0], events=[Event(condition, terminal=False)])
    assert len(sol.events[0]) == count
    width = math.sqrt(abs(gap))
    expected = [1 - width, 1 + width][:count]
    assert sol.events[0].times.tolist() == pytest.approx(expected, abs=1e-10)


def test_zero_at_t0_fires_only_after_leaving_zero():
    sol = solve(
        oscillator,
        torch.tensor([0.0, 1.0]),
        [0.0, 4.0],
        events=[Event(lambda t, z: z[0]), Event(lambda t, z: 0 * z[0], terminal=False)],
        **TIGHT,
    )
    assert sol.t_final.item() == pytest.approx(math.pi, abs=1e-10)
    assert len(sol.events[1]) == 0  # zero all the time: it never leaves


def test_terminal_event_ends_the_solve():
    z0 = torch.tensor([10.0, 0.0])
    late = Event(lambda t, z: t - 2.0, terminal=False, name="late")
    early = Event(lambda t, z: t - 0.5, terminal=False, name="early")
    ground = Event(lambda t, z: z[0], name="ground")
    sol = solve(falling, z0, [0.0, 1.0, 2.0, 3.0], events=[late, ground, early], **TIGHT)
    end = math.sqrt(20 / GRAVITY)
    assert sol.retcode is Retcode.TERMINATED and sol.success and not sol.message
    assert sol.t_final.item() == pytest.approx(end, abs=1e-12)
    torch.testing.assert_close(sol.z_final, torch.tensor([0.0, -GRAVITY * end]), atol=1e-10, rtol=0)
    assert sol.zs[:2].isfinite().all() and sol.zs[2:].isnan().all()
    assert [len(record) for record in sol.events] == [0, 1, 1]
    assert sol.events[1].name == "ground"
    with pytest.raises(InputError, match="outside"), torch.no_grad():
        sol(2.0)


def test_bounded_horizon_when_none_fires():
    never = Event(lambda t, z: z[0] + 5.0)
    sol = solve(oscillator, torch.tensor([0.0, 1.0]), [0.0, 4.0], events=[never])
    assert sol.retcode is Retcode.SUCCESS
    assert len(sol.events[0]) == 0 and sol.events[0].states.shape == (0, 2)
    assert sol.t_final == 4.0 and torch.equal(sol.z_final, sol.zs[-1])


@pytest.mark.parametrize(
    "solver", ["tsit5", "bs3", "dop853", "rodas5p", "trbdf2", "kvaerno5", "fbdf"]
)
def test_bouncing_ball(solver):
    times = [0.0, 1.0, 2.0, 3.0, 4.0]
    error = 1e-6 if solver == "fbdf" else 1e-8  # it begins with order 1
    sol = solve(falling, torch.tensor([10.0, 0.0]), times, events=[floor(0.8)], solver=solver)
    record = sol.events[0]
    expected = bounces(10.0, 0.8, len(record))
    assert len(record) == sum(t <= 4.0 for t in bounces(10.0, 0.8, 20))
    assert record.times.tolist() == pytest.approx(expected, abs=error)
    speeds = [math.sqrt(2 * GRAVITY * 10.0) * 0.8**k for k in range(len(record))]
    assert record.states[:, 1].tolist() == pytest.approx([-v for v in speeds], abs=10 * error)
    after = record.states_after[:, 1]
    assert after.tolist() == pytest.approx([0.8 * v for v in speeds], abs=10 * error)
    energy = sol.zs[:, 0] * GRAVITY + sol.zs[:, 1] ** 2 / 2
    passed = torch.tensor([sum(t < s for t in expected) for s in times])
    torch.testing.assert_close(energy, 98.1 * 0.64**passed, rtol=error, atol=0)


@pytest.mark.parametrize("restitution", [0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeno_ends_with_a_message(restitution, dtype):
    """Bounces accumulate at a finite time: neither a loop, nor a ball below the floor."""
    end = bounces(1.0, restitution, 1)[0] * (1 + 2 * restitution / (1 - restitution))
    z0 = torch.tensor([1.0, 0.0], dtype=dtype)
    with pytest.raises(SolveError, match="'floor' fires again and again") as caught:
        solve(falling, z0, [0.0, 0.5 * end, 2 * end], events=[floor(restitution)])
    assert caught.value.retcode == "max_events"
    assert caught.value.t == pytest.approx(end, rel=1e-4)
    zs = caught.value.solution.zs
    assert zs[1].isfinite().all() and zs[2].isnan().all()


def test_max_events_bounds_the_jumps():
    fire = Event(lambda t, z: z[0] - 1.0, jump=lambda t, z: 0 * z, name="spike")
    with pytest.raises(SolveError, match="max_events=7"):
        solve(clock, torch.zeros(1), [0.0, 100.0], events=[fire], max_events=7)
    sol = solve(clock, torch.zeros(1), [0.0, 100.0], events=[fire], max_events=7, throw=False)
    assert len(sol.events[0]) == 8 and sol.retcode is Retcode.MAX_EVENTS
    with pytest.raises(InputError):
        solve(clock, torch.zeros(1), [0.0, 100.0], events=[fire], max_events=0)


def test_integrate_and_fire():
    """The jump moves the condition away from zero, and the next step may be long."""
    fire = Event(lambda t, z: z[0] - 1.0, jump=lambda t, z: z - 1.0)
    sol = solve(clock, torch.zeros(1), [0.0, 9.5], events=[fire])
    assert sol.events[0].times.tolist() == pytest.approx(list(range(1, 10)), abs=1e-12)
    assert sol.z_final.item() == pytest.approx(0.5, abs=1e-12)


def test_a_jump_may_pass_on_through_zero():
    """The mode changes where x crosses 1; x goes on: the event does not fire again."""
    switch = Event(
        lambda t, z: z["x"] - 1.0,
        jump=lambda t, z: {"mode": torch.tensor(3.0), "x": z["x"]},
    )

    def field(t: Tensor, z: dict) -> dict:
        return {"x": z["mode"], "mode": torch.zeros(())}

    z0 = {"x": torch.tensor(0.0), "mode": torch.tensor(1.0)}
    sol = solve(field, z0, [0.0, 2.0], events=[switch])
    assert sol.events[0].times.tolist() == pytest.approx([1.0], abs=1e-12)
    assert sol.zs["x"][-1].item() == pytest.approx(4.0, abs=1e-9)
    assert sol.events[0].states["mode"].tolist() == [1.0]
    assert sol.events[0].states_after["mode"].tolist() == [3.0]


def test_a_jump_does_not_fire_other_events():
    down = Event(lambda t, z: z[0] - 1.0, jump=lambda t, z: z - 5.0, direction=1)
    below = Event(lambda t, z: z[0], terminal=False)
    sol = solve(clock, torch.tensor([0.5]), [0.0, 10.0], events=[down, below])
    # Carried from 1 to -4, it rises through 0 at 4.5; then again and again.
    assert sol.events[1].times.tolist() == pytest.approx([4.5, 9.5], abs=1e-9)


def test_outputs_at_a_jump_are_those_before_it():
    """A dose at t = 1, given as an event on time: outputs at 1 come before it."""
    dose = Event(lambda t, z: t - 1.0, jump=lambda t, z: z + 10.0)
    for options in ({}, {"tstops": [1.0]}):
        sol = solve(lambda t, z: -z, torch.ones(2), [0.0, 1.0, 2.0], events=[dose], **options)
        assert sol.events[0].times.item() == pytest.approx(1.0, abs=1e-15)
        torch.testing.assert_close(sol.zs[1], torch.full((2,), math.exp(-1)), rtol=1e-5, atol=0)
        expected = (math.exp(-1) + 10) * math.exp(-1)
        torch.testing.assert_close(sol.zs[2], torch.full((2,), expected), rtol=1e-5, atol=0)
        before, after = sol(torch.tensor([sol.events[0].times.item(), 1.0 + 1e-9])).detach()
        assert before[0] < 1 < after[0]


def test_an_event_at_the_horizon():
    dose = Event(lambda t, z: t - 1.0, jump=lambda t, z: z + 10.0)
    sol = solve(lambda t, z: 0 * z, torch.ones(1), [0.0, 1.0], events=[dose])
    assert sol.retcode is Retcode.SUCCESS
    assert sol.zs[-1].item() == 1.0 and sol.z_final.item() == 11.0
    end = Event(lambda t, z: t - 1.0)
    sol = solve(lambda t, z: 0 * z, torch.ones(1), [0.0, 1.0], events=[end])
    assert sol.retcode is Retcode.TERMINATED and sol.zs.isfinite().all()


def test_several_events_at_one_time():
    """All are recorded; jumps are applied in the order of the events."""
    add = Event(lambda t, z: z[0] - 1.0, jump=lambda t, z: z + torch.tensor([0.0, 1.0]))
    double = Event(lambda t, z: t - 1.0, jump=lambda t, z: z * torch.tensor([1.0, 2.0]))
    seen = Event(lambda t, z: t - z[1] / 3 - 0 * t, terminal=False)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0])

    z0 = torch.tensor([0.0, 3.0])
    for events, last in (([add, double, seen], 8.0), ([double, add, seen], 7.0)):
        sol = solve(field, z0, [0.0, 2.0], events=events)
        assert [record.times.tolist() for record in sol.events] == [
            pytest.approx([1.0], abs=1e-14)
        ] * 3
        assert sol.zs[-1, 1].item() == pytest.approx(last, abs=1e-12)


def test_terminal_event_with_a_jump():
    event = Event(lambda t, z: z[0] - 2, terminal=True, jump=lambda t, z: z + 7)
    sol = solve(clock, torch.zeros(1), [0.0, 5.0], events=[event])
    assert sol.retcode is Retcode.TERMINATED
    assert sol.z_final.item() == pytest.approx(9.0, abs=1e-13)
    assert sol.events[0].states.item() == pytest.approx(2.0, abs=1e-13)


def test_a_condition_for_each_sample():
    """(B,) conditions in a joint solve are watched apart, and jump apart by the mask."""
    heights = torch.tensor([10.0, 4.0, 7.0, 4.0])
    z0 = torch.stack([heights, torch.zeros(4)], dim=1)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], torch.full_like(z[:, 1], -GRAVITY)], dim=1)

    def jump(t: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(1), z * torch.tensor([1.0, -0.8]), z)

    event = Event(lambda t, z: z[:, 0], direction=-1, jump=jump)
    sol = solve(field, z0, [0.0, 2.0, 4.0], events=[event])
    for b, height in enumerate(heights.tolist()):
        alone = solve(falling, torch.tensor([height, 0.0]), [0.0, 2.0, 4.0], events=[floor(0.8)])
        own = sol.events[0].of(b)
        torch.testing.assert_close(own.times, alone.events[0].times, atol=1e-9, rtol=0)
        torch.testing.assert_close(own.states[:, b], alone.events[0].states, atol=1e-8, rtol=0)
        torch.testing.assert_close(sol.zs[:, b], alone.zs, atol=1e-8, rtol=0)
    assert sol.events[0].entries.bincount().tolist() == [2, 3, 2, 3]


def test_states_of_structure_and_complex_ones():
    sol = solve(
        lambda t, z: {"a": 1j * z["a"], "b": -z["b"]},
        {"a": torch.ones(2, dtype=torch.complex128), "b": torch.ones(3)},
        [0.0, 4.0],
        events=[
            Event(lambda t, z: z["a"][0].real, jump=lambda t, z: {"b": z["b"] + 1, "a": z["a"]})
        ],
        **TIGHT,
    )
    record = sol.events[0]
    assert record.times.tolist() == pytest.approx([math.pi / 2], abs=1e-10)
    torch.testing.assert_close(record.states["a"][0], torch.full((2,), 1j), atol=1e-10, rtol=0)
    torch.testing.assert_close(record.states_after["b"], record.states["b"] + 1)


def test_modules_args_and_float32():
    """Conditions and jumps as modules or with args; NeuralODE takes events in solve."""
    torch.manual_seed(0)
    net = nn.Linear(2, 2).float()
    surface = nn.Linear(2, 1).float()

    class Condition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.surface = surface

        def forward(self, t: Tensor, z: Tensor, args: Tensor) -> Tensor:
            return self.surface(z)[0] - args

    node = NeuralODE(lambda t, z, args: net(z))
    z0 = torch.tensor([1.0, 0.0], dtype=torch.float32)
    level = surface(node(z0, [0.0, 1.5], torch.zeros(1))[-1])[0].detach()
    sol = node.solve(z0, [0.0, 9.0], level, events=[Event(Condition())])
    assert sol.retcode is Retcode.TERMINATED
    assert surface(sol.z_final)[0].item() == pytest.approx(level.item(), abs=1e-5)
    assert sol.events[0].name == "Condition" and sol.z_final.dtype == torch.float32
    problem = ODEProblem(node.field, z0, [0.0, 9.0], level, events=[Event(Condition())])
    assert solve(problem).retcode is Retcode.TERMINATED
    with pytest.raises(InputError, match="holds its own events"):
        solve(problem, events=[Event(Condition())])


def test_fixed_steps_go_on_from_the_event():
    z0 = torch.tensor([10.0, 0.0])
    sol = solve(falling, z0, [0.0, 4.0], events=[floor(0.8)], solver="rk4", dt=0.3)
    assert sol.events[0].times.tolist() == pytest.approx(bounces(10.0, 0.8, 2), abs=1e-10)


def test_max_steps_is_of_the_whole_solve():
    fire = Event(lambda t, z: z[0] - 1.0, jump=lambda t, z: 0 * z)
    with pytest.raises(SolveError) as caught:
        solve(clock, torch.zeros(1), [0.0, 100.0], events=[fire], max_steps=20, dt_max=0.5)
    solution = caught.value.solution
    assert caught.value.retcode == "max_steps"
    assert solution.stats.accepted + solution.stats.rejected == 20
    assert 0 < len(solution.events[0]) <= 10


BAD_CONDITIONS = {
    "NaN or infinite": lambda t, z: torch.sqrt(0.5 - z[0]),
    "a float": lambda t, z: 1.0,
    r"shape \(1, 1\)": lambda t, z: z.reshape(1, 1),
    "dtype torch.bool": lambda t, z: z[0] > 0.5,
}


@pytest.mark.parametrize("message", list(BAD_CONDITIONS))
def test_bad_conditions(message):
    event = Event(BAD_CONDITIONS[message], terminal=False, name="odd")
    with pytest.raises(EventError, match=f"event 'odd'.*{message}"):
        solve(clock, torch.zeros(1), [0.0, 1.0], events=[event])


def test_bad_numbers_of_conditions_and_bad_jumps():
    def growing(t: Tensor, z: Tensor) -> Tensor:
        return z if t < 0.1 else torch.cat([z, z])

    def run(*args, **options):
        return solve(clock, torch.zeros(2), [0.0, 1.0], events=[Event(*args, **options)])

    with pytest.raises(EventError, match=r"4 values.* 2 before"):
        run(growing, terminal=False)
    with pytest.raises(EventError, match="terminal"):
        run(lambda t, z: z)
    with pytest.raises(EventError, match="mask"):
        run(lambda t, z: z - 0.5, jump=lambda t, z: z)
    for jump in (lambda t, z: z[:1], lambda t, z: z.float(), lambda t, z: (z,), lambda t, z: None):
        with pytest.raises(EventError, match="the jump of event"):
            run(lambda t, z: z[0] - 0.5, jump=jump)
    with pytest.raises(EventError, match=r"jump of event .* NaN"):
        run(lambda t, z: z[0] - 0.5, jump=lambda t, z: z * math.nan)


def test_bad_events():
    good = Event(lambda t, z: z[0])
    for arguments in ((3.0,), (good.condition, 2), (good.condition, 0, None, "jump")):
        with pytest.raises(InputError):
            Event(*arguments)
    with pytest.raises(InputError, match="positional parameters"):
        Event(lambda: None)
    with pytest.raises(InputError, match=r"pynode\.Event"):
        solve(clock, torch.zeros(1), [0.0, 1.0], events=[good.condition])
    times = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    with pytest.raises(InputError, match="share"):
        solve(clock, torch.zeros(2, 1), times, events=[good])
    options = {"sensitivity": "reversible", "dt": 0.1, "adaptive": False}
    with pytest.raises(InputError, match="reversible"):
        solve(clock, torch.zeros(2, 1), [0.0, 1.0], events=[good], **options)
    with pytest.raises(GradientError, match=r"torch\.func"):
        torch.func.grad(
            lambda z: solve(clock, z, [0.0, 1.0], events=[good], sensitivity="discrete").zs.sum()
        )(torch.zeros(1))
