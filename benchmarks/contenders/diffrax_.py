"""diffrax, jitted: the batch as one state, and vmapped so that each sample has its own steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task, allowed, import_failure, kind_of
from benchmarks.fields import FIELDS, jax_ops

MAX_STEPS = 16**4


class Diffrax(Contender):
    """
    Args:
        per_sample: vmap over the batch, instead of one step size for all.
    """

    package = "diffrax"
    eager = False

    def __init__(self, per_sample: bool) -> None:
        self.per_sample = per_sample
        self.name = "diffrax vmap" if per_sample else "diffrax"

    def missing(self, device: str) -> str:
        failure = import_failure("jax", "equinox", "diffrax")
        if not failure and device != "cpu":
            import jax

            if jax.default_backend() == "cpu":
                return "this jax sees no GPU"
        return failure

    def modes(self, case: Case) -> list[str]:
        if self.per_sample and (len(case.z0) == 1 or case.growth):
            return []
        if self.per_sample:  # backsolve would carry a gradient of all parameters for each sample
            return allowed(case, ("discrete",))
        # Of stiff samples solved as one, with one Jacobian, gradients take minutes to compile.
        return allowed(case, () if case.stiff else ("discrete", "backsolve"))

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        import jax
        import jax.numpy as jnp

        kind = kind_of(mode)
        dtype = getattr(jnp, case.dtype)
        params = [jnp.asarray(x, dtype) for x in case.params]
        z0, weights = jnp.asarray(case.z0, dtype), jnp.asarray(case.weights(), dtype)
        solve = self._solve(case, kind, dtype)

        def loss(z0: Any, params: Any) -> Any:
            zs, counts = solve(z0, params)
            return (zs * weights).sum(), (zs, counts)

        # The two must be compiled as one, else the gradient would solve twice.
        if kind is None:
            call: Any = jax.jit(lambda z0, params: ((None, solve(z0, params)), None))
        else:
            call = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

        def run() -> Any:
            return jax.block_until_ready(call(z0, params))

        def read(raw: Any) -> Any:
            (_, (zs, _)), grads = raw
            states = np.asarray(zs, np.float64)
            if grads is None:
                return states, None
            return states, (
                np.asarray(grads[0], np.float64),
                [np.asarray(g, np.float64) for g in grads[1]],
            )

        def counts(raw: Any) -> dict[str, int]:
            return {"steps": int(np.max(np.asarray(raw[0][1][1])))}

        method = "kvaerno5" if case.stiff else "dopri5"
        return Task(run, read, counts, f"{method}, {'per sample' if self.per_sample else 'joint'}")

    def _solve(self, case: Case, kind: str | None, dtype: Any) -> Any:
        import diffrax
        import jax
        import jax.numpy as jnp

        m, formula = jax_ops(), FIELDS[case.field]
        term = diffrax.ODETerm(lambda t, z, p: formula(m, t, z, p))
        # Implicit: its root finder's tolerances are the controller's by default.
        solver: Any = diffrax.Kvaerno5() if case.stiff else diffrax.Dopri5()
        adjoint: Any = diffrax.RecursiveCheckpointAdjoint()
        if kind == "backsolve":
            adjoint = diffrax.BacksolveAdjoint()
        controller = diffrax.PIDController(rtol=case.rtol, atol=case.atol)

        def one(z0: Any, params: Any, times: Any) -> Any:
            found = diffrax.diffeqsolve(
                term,
                solver,
                times[0],
                times[-1],
                None,
                z0,
                params,
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=controller,
                adjoint=adjoint,
                max_steps=MAX_STEPS,
            )
            return found.ys, found.stats["num_steps"]

        if self.per_sample:
            times = jnp.asarray(np.broadcast_to(case.times, (len(case.z0), case.times.shape[-1])))
            times = times.astype(dtype)

            def each(z0: Any, params: Any, ts: Any) -> Any:
                zs, steps = one(z0[None], params, ts)
                return zs[:, 0], steps

            mapped = jax.vmap(each, in_axes=(0, None, 0), out_axes=(1, 0))
            return lambda z0, params: mapped(z0, params, times)
        if case.times.ndim == 1:
            times = jnp.asarray(case.times, dtype)
            return lambda z0, params: one(z0, params, times)
        union, place = np.unique(case.times.astype(case.dtype), return_inverse=True)
        place, rows = place.reshape(case.times.shape).T, np.arange(len(case.z0))
        shared = jnp.asarray(union, dtype)

        def picked(z0: Any, params: Any) -> Any:
            zs, steps = one(z0, params, shared)
            return zs[place, rows], steps

        return picked


def contenders() -> list[Contender]:
    return [Diffrax(False), Diffrax(True)]
