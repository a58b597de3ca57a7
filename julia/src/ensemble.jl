"""
    ensemble(field, u0s, ps, ts; solver = "tsit5", rtol, atol, dt, adaptive = true, backend = :cpu)

Solve du/dt = f(u, p, t) from each column of `u0s` (n, M) at the times `ts`, all in one kernel whose
threads each solve one, with steps of their own: (n, T, M). `ps` are the parameters (P) of all or
(P, M) of each. `field` is that of one sample, a [`ProgramField`](@ref); it is written out as a
function of numbers and compiled, which takes seconds for a network of some thousand weights.

`backend` is `:cpu`, `:cuda`, or one of KernelAbstractions'. Where a trajectory becomes NaN its states are
NaN from there on; one whose steps become too small ends the whole kernel with an error, as DiffEqGPU
does it. Needs the package DiffEqGPU, and for `:cuda` CUDA, to be loaded.
"""
function ensemble end

ensemble(args...; kw...) = throw(ArgumentError("ensembles in one kernel need DiffEqGPU: `using DiffEqGPU`, after `Pkg.add(\"DiffEqGPU\")`"))

const ENSEMBLE_SOLVERS = String[]

"""Names of the solvers that have a kernel; none without DiffEqGPU."""
ensemble_solvers() = copy(ENSEMBLE_SOLVERS)

"""KernelAbstractions' backend by name."""
ensemble_backend(::Val{name}) where {name} =
    throw(ArgumentError("there is no backend $name here" * (name === :cuda ? ": it needs the package CUDA, loaded, and an NVIDIA GPU" : "")))
