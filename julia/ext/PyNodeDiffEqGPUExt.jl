"""Ensembles of small systems in one kernel, a trajectory a thread, by DiffEqGPU's EnsembleGPUKernel."""
module PyNodeDiffEqGPUExt

using Base.CoreLogging: NullLogger, current_logger, with_logger
using DiffEqGPU: DiffEqGPU, GPUKvaerno5, GPURodas4, GPURodas5P, GPURosenbrock23, GPUTsit5, GPUVern7
using KernelAbstractions: KernelAbstractions, CPU
using PyNode: PyNode, ProgramField, check_times, written_out
using SciMLBase: FullSpecialize, ODEFunction, ODEProblem
using StaticArrays: SMatrix, SVector

const KERNELS = Dict(
    "tsit5" => GPUTsit5, "vern7" => GPUVern7, "rosenbrock23" => GPURosenbrock23, "rodas4" => GPURodas4,
    "rodas5p" => GPURodas5P, "kvaerno5" => GPUKvaerno5,
)
const STIFF = ("rosenbrock23", "rodas4", "rodas5p", "kvaerno5")

__init__() = append!(PyNode.ENSEMBLE_SOLVERS, sort!(collect(keys(KERNELS))))
PyNode.ensemble_backend(::Val{:cpu}) = CPU()

"""The functions of a field that kernels call, compiled once for each field and solver kind."""
const COMPILED = IdDict{ProgramField, Dict{Bool, Any}}()

function PyNode.ensemble(
        field::ProgramField{T}, u0s::AbstractMatrix, ps::AbstractVecOrMat, ts::AbstractVector{<:Real};
        solver::AbstractString = "tsit5", rtol::Real = 1.0e-6, atol::Real = 1.0e-8, dt::Union{Nothing, Real} = nothing,
        adaptive::Bool = true, backend = :cpu,
    ) where {T}
    haskey(KERNELS, solver) ||
        throw(ArgumentError("solver $(repr(solver)) has no kernel; there are $(join(PyNode.ensemble_solvers(), ", "))"))
    field.rows == 1 || throw(ArgumentError("the field is of $(field.rows) samples: an ensemble takes that of one"))
    n, p = field.width, field.f.sizes[5]
    size(u0s, 1) == n || throw(DimensionMismatch("initial states of $(size(u0s, 1)) entries, not $n"))
    size(ps, 1) == p || throw(DimensionMismatch("parameters of $(size(ps, 1)) entries, not $p"))
    ps isa AbstractVector || size(ps, 2) == size(u0s, 2) ||
        throw(DimensionMismatch("$(size(ps, 2)) sets of parameters for $(size(u0s, 2)) trajectories"))
    !adaptive && dt === nothing && throw(ArgumentError("fixed steps need dt"))
    times = check_times(ts)
    functions = get!(() -> compiled(field, solver in STIFF), get!(() -> Dict{Bool, Any}(), COMPILED, field), solver in STIFF)
    # The functions are newer than this one: the rest runs in the world that knows them.
    return Base.invokelatest(
        launch, functions, Matrix{T}(u0s), Array{T}(ps), times, KERNELS[solver](), T(rtol), T(atol), dt, adaptive, place(backend))
end

place(backend::Symbol) = PyNode.ensemble_backend(Val(backend))
place(backend) = backend

"""Of the entries of a Jacobian, row by row. (A closure would look its size up, which GPU code cannot.)"""
struct RowMajor{n, T} end
(::RowMajor{n, T})(entries...) where {n, T} = transpose(SMatrix{n, n, T}(entries...)) * one(T)

"""(; f, jac, tgrad) on static arrays, as programs that are written out."""
function compiled(field::ProgramField{T}, stiff) where {T}
    n = field.width
    f = @eval $(written_out(field.f, SVector{n, T}))
    stiff || return (; f, jac = nothing, tgrad = nothing)
    jac = @eval $(written_out(field.jac, RowMajor{n, T}()))
    tgrad = @eval $(written_out(field.tgrad, SVector{n, T}))
    return (; f, jac, tgrad)
end

"""f backwards in time: kernels step forwards only."""
struct Backwards{F}
    f::F
    sign::Int  # of the result: −1 for f and its Jacobian, 1 for its time derivative
end
(b::Backwards)(u, p, t) = b.sign * b.f(u, p, -t)

function launch(functions, u0s::Matrix{T}, ps, times, kernel, rtol, atol, dt, adaptive, backend) where {T}
    n, count = size(u0s)
    (; f, jac, tgrad) = functions
    marks = T.(times)
    if marks[end] < marks[1]
        marks, f = -marks, Backwards(f, -1)
        jac === nothing || ((jac, tgrad) = (Backwards(jac, -1), Backwards(tgrad, 1)))
    end
    span = (marks[1], marks[end])
    static(i) = SVector{size(ps, 1), T}(ps isa AbstractVector ? ps : view(ps, :, i))
    problem(i) = ODEProblem{false}(
        ODEFunction{false, FullSpecialize}(f; jac, tgrad), SVector{n, T}(view(u0s, :, i)), span, static(i))
    first = problem(1)
    problems = map(i -> DiffEqGPU.make_prob_compatible(i == 1 ? first : problem(i)), 1:count)
    there = KernelAbstractions.allocate(backend, eltype(problems), count)
    copyto!(there, problems)
    step = dt === nothing ? (span[2] - span[1]) / 100 : T(min(abs(dt), span[2] - span[1]))
    solve = adaptive ? DiffEqGPU.vectorized_asolve : DiffEqGPU.vectorized_solve
    # On a CPU, which is what was asked for, DiffEqGPU warns that it is one.
    reached, states = with_logger(backend isa CPU ? NullLogger() : current_logger()) do
        solve(there, first, kernel; dt = step, saveat = marks, abstol = atol, reltol = rtol, save_everystep = false)
    end
    KernelAbstractions.synchronize(backend)
    return gathered(Array(reached), Array(states), marks, u0s)
end

"""
(n, T, M): a state is there where its time was written; the rest, which a trajectory that became NaN
did not reach, is NaN.
"""
function gathered(reached, states, marks, u0s::Matrix{T}) where {T}
    zs = fill(T(NaN), size(u0s, 1), length(marks), size(u0s, 2))
    zs[:, 1, :] = u0s
    for b in axes(states, 2), i in 2:length(marks)
        reached[i, b] == marks[i] && (zs[:, i, b] = states[i, b])
    end
    return zs
end

end
