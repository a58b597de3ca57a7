"""Folders that Julia runs without Python: a lowered field, its data, and what to do with them.

``problem.toml``, ``field.json`` (docs/program-format.md) and ``data.npz`` hold data only; nothing
in them is ever run as code, and no file name is taken from them. See docs/julia.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode import catalogue
from pynode.errors import InputError
from pynode.field import FlatField
from pynode.problem import ODEProblem
from pynode.solution import Statistics
from pynode.state import State

if TYPE_CHECKING:
    from pynode.neural_ode import NeuralODE

FORMAT, VERSION = "pynode-run", 1
RESULTS = ("solution", "gradient", "parameters", "ensemble")
OF_STEPS = ("norm", "safety", "shrink", "grow", "dt_min", "grid")
"""Options that decide which steps are made; Julia does not have them."""


def export(
    node: NeuralODE,
    folder: str | Path,
    z0: State,
    t: Any,
    args: Any = None,
    *,
    targets: State = None,
    weights: State = None,
    z0s: State = None,
) -> Path:
    """Write a folder for ``julia --project=. julia/bin/pynode.jl solve|gradient|train|ensemble``.

    Args:
        z0, t, args: as for a solve; t is shared by all samples.
        targets: (T, *z0.shape), for ``train``: what the states should be, NaN where unknown.
        weights: (T, *z0.shape), for ``gradient``: of sum(weights · states); default: ones.
        z0s: (M, *z0.shape), for ``ensemble``: initial states of M trajectories.

    Returns:
        The folder.

    Raises:
        LoweringError: the field cannot be lowered.
        InputError: something does not fit, or an option has no meaning outside Python.
    """
    # torch's tracing is imported when it is needed
    from pynode.engines.julia.engine import check_options
    from pynode.engines.julia.fields import programs_of
    from pynode.lowering import lower

    problem, options = ODEProblem(node.field, z0, t, args), node.options
    if problem.times.per_sample:
        raise InputError("export takes times that all samples share, (T,)")
    if not all(isinstance(x, int | float) for x in (options.rtol, options.atol)):
        raise InputError("export takes numbers for rtol and atol, not tensors")
    check_options(options, OF_STEPS)
    layout = problem.layout
    field = FlatField(node.field, layout, args, Statistics())
    flat = layout.flatten(z0).detach()
    stiff = catalogue.solver(options.solver).stiff
    if stiff and options.sensitivity == "discrete":
        raise InputError(
            f"Julia has no sensitivity='discrete' for the stiff solver {options.solver}: export "
            "with 'gauss' or 'quadrature'"
        )
    # All that Julia may be asked for there, and not only by the sensitivity that is written down.
    kinds = (options.sensitivity,) if stiff else ("gauss", "discrete")
    names = tuple(dict.fromkeys(name for kind in kinds for name in programs_of(kind, stiff)))
    lowered = lower(field, flat, problem.times.start, names)
    times = np.array(problem.times.values)
    if len(np.unique(times)) < len(times):
        raise InputError("export takes times that are all different")
    data = {"z0": flat, "ts": torch.tensor(times)}
    parameters = lowered.flat_parameters()
    if len(parameters):  # Julia's reader stumbles over empty arrays
        data["p"] = parameters
    given = {"targets": targets, "weights": weights, "z0s": z0s}
    for name, value in given.items():
        if value is not None:
            data[name] = _flat(name, value, problem, None if name == "z0s" else len(times))
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "field.json").write_text(json.dumps(lowered.to_json()))
    arrays: Any = {name: x.detach().cpu().numpy() for name, x in data.items()}
    np.savez(path / "data.npz", **arrays)
    (path / "problem.toml").write_text(_toml(node, problem))
    return path


def _flat(name: str, value: State, problem: ODEProblem, rows: int | None) -> Tensor:
    """A stack of states as (rows, N)."""
    count = len(pytree.tree_leaves(value)[0])
    wanted = count if rows is None else rows
    shapes = [tuple(x.shape) for x in pytree.tree_leaves(value)]
    if shapes != [(wanted, *shape) for shape in problem.layout.shapes]:
        raise InputError(
            f"{name} has shapes {shapes}: {wanted} states of shapes {problem.layout.shapes} are "
            "needed"
        )
    states = [pytree.tree_map(lambda x, i=i: x[i], value) for i in range(wanted)]
    return torch.stack([problem.layout.flatten(state) for state in states])


def _toml(node: NeuralODE, problem: ODEProblem) -> str:
    options = node.options
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "solver": options.solver,
        "sensitivity": options.sensitivity,
        "rtol": float(options.rtol),
        "atol": float(options.atol),
        "max_steps": int(options.max_steps),
        "adaptive": options.is_adaptive,
        "tstops": list(options.tstops),
        "shapes": [list(shape) for shape in problem.layout.shapes],
    }
    if options.dt is not None:
        values["dt"] = float(options.dt)
    if options.controller == "i":
        values["controller"] = "i"
    if np.isfinite(options.dt_max):
        values["dt_max"] = float(options.dt_max)
    # Of numbers, strings, booleans and lists of them, JSON's spelling is TOML's.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def results(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """What Julia wrote into a folder: by command, then by name; states as (T, N) or (M, T, N).

    Raises:
        InputError: there is no result in it, or a file cannot be read.
    """
    found = {}
    for name in RESULTS:
        path = Path(folder) / f"{name}.npz"
        if path.is_file():
            found[name] = {k: torch.from_numpy(np.asarray(v)) for k, v in _load(path).items()}
    if not found:
        raise InputError(f"{folder} holds no result yet: run julia/bin/pynode.jl on it first")
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def load_parameters(node: NeuralODE, folder: str | Path) -> None:
    """Put the parameters that Julia trained into ``node``'s field.

    Raises:
        InputError: the folder has none, or they are of another field.
    """
    path = Path(folder) / "parameters.npz"
    if not path.is_file():
        raise InputError(f"{folder} has no trained parameters: run `pynode.jl train` on it first")
    values = torch.from_numpy(_load(path)["p"])
    layout = json.loads((Path(folder) / "field.json").read_text())["parameters"]
    own = dict(node.field.named_parameters()) if hasattr(node.field, "named_parameters") else {}
    places = [(p["name"], p["offset"], tuple(p["shape"])) for p in layout]
    for name, _, shape in places:
        if name not in own or tuple(own[name].shape) != shape:
            raise InputError(f"{folder} is of another field: it has {name} of shape {shape}")
    with torch.no_grad():
        for name, offset, _ in places:
            own[name].copy_(values[offset : offset + own[name].numel()].reshape(own[name].shape))
