"""Counts of a solve."""
struct Stats
    nfe::Int
    accepted::Int
    rejected::Int
    jacobians::Int
end

total(stats) = Stats((sum(one -> getfield(one, name), stats) for name in fieldnames(Stats))...)

"""
What a forward solve leaves.

- `zs`: (n, T), the state at each of the times; with other `reads` than whole states, (width, T);
- `sol`: SciML's solution, with what was kept (`keep`);
- `solver`, `controller`, `fixed`: by which it was made, `fixed` where a step size was given;
- `stats`: evaluations of the field, steps;
- `retcode`: `"success"`, `"max_steps"`, `"dt_underflow"` or `"non_finite"`;
- `t`: the time that was reached.
"""
struct Forward{T, M <: AbstractMatrix{T}, S, F}
    zs::M
    reads::Reads
    sol::S
    field::F
    solver::String
    controller::String
    fixed::Bool
    keep::Symbol
    retcode::String
    t::Float64
    stats::Stats
    counts::Counts
end

const RETCODES = Dict(
    ReturnCode.Success => "success",
    ReturnCode.Default => "success",
    ReturnCode.MaxIters => "max_steps",
    ReturnCode.DtLessThanMin => "dt_underflow",
    ReturnCode.Unstable => "non_finite",
    ReturnCode.DtNaN => "non_finite",
    ReturnCode.ConvergenceFailure => "dt_underflow",
)

"""
    forward(field, u0, p, ts; solver = "tsit5", rtol = 1e-6, atol = 1e-8, dt, adaptive, max_steps, dt_max, tstops,
            controller = "own", keep = :dense)

Solve du/dt = f(u, p, t) from `u0` at `ts[1]` to `ts[end]`; `ts` increases or decreases. Throws an
`ArgumentError` for input that cannot be used; a solve that fails is reported by `retcode`, and the
columns of `zs` that it did not reach hold NaN.

What is kept of the steps: `:nothing`; the `:states`, from which [`gradient`](@ref) goes by "discrete"; or
`:dense` output, which the other sensitivities need.
"""
forward(field::AbstractField, u0::AbstractVector, p::AbstractVector, ts::AbstractVector{<:Real}; options...) =
    forward(field, u0, p, Reads(ts, length(u0)); options...)

function forward(
        field::AbstractField, u0::AbstractVector{T}, p::AbstractVector, reads::Reads;
        solver::AbstractString = "tsit5", rtol::Real = 1.0e-6, atol::Real = 1.0e-8, dt::Union{Nothing, Real} = nothing,
        adaptive::Union{Nothing, Bool} = nothing, max_steps::Integer = 10_000, dt_max::Union{Nothing, Real} = nothing,
        tstops::AbstractVector{<:Real} = Float64[], controller::AbstractString = "own", keep::Symbol = :dense,
    ) where {T <: AbstractFloat}
    info = solver_info(solver)
    stops = info.lands ? union(filter(!=(reads.start), reads.times), tstops) : tstops
    integrator, counts = start(
        field, u0, p, (reads.start, reads.stop); solver, rtol, atol, dt, adaptive, max_steps, dt_max, tstops = stops, controller, keep,
    )
    return finish(integrator, counts, field, u0, reads, String(solver), String(controller), dt !== nothing, keep)
end

"""All steps of an integrator, a type of which `forward` learns only when it is there."""
function finish(integrator, counts::Counts, field, u0, reads::Reads, solver::String, controller::String, fixed::Bool, keep::Symbol)
    # Reading adds to the slopes of a step where interpolants are lazy (vern7), and what is kept would have them.
    zs = keep == :dense ? read_afterwards(integrator, reads, u0) : read_on_the_way(integrator, reads, u0)
    sol = integrator.sol
    retcode = get(() -> lowercase(string(sol.retcode)), RETCODES, sol.retcode)
    stats = Stats(counts.rhs, sol.stats.naccept, sol.stats.nreject, sol.stats.njacs)
    return Forward(zs, reads, sol, field, solver, controller, fixed, keep, retcode, Float64(integrator.t), stats, counts)
end

"""An integrator at the beginning of a span, and the counts of what it evaluates."""
function start(field::AbstractField, u0::AbstractVector{T}, p, span; solver, options...) where {T}
    info = solver_info(solver)
    check_solver(field, solver)
    f, counts = odefunction(field, length(u0), T, info.stiff)
    return init(ODEProblem(f, u0, span, p), info.make(); solve_keywords(info, span; solver, options...)...), counts
end

"""
A step that would end this close to a stop ends on it: no sliver is left over, which would cost a whole step. The
controllers' safety keeps the error to be expected below the tolerance.
"""
const STRETCH = 1.1

function stretch!(integrator)
    integrator.opts.adaptive && SciMLBase.has_tstop(integrator) || return nothing
    dt, left = abs(get_proposed_dt(integrator)), SciMLBase.first_tstop(integrator) - integrator.tdir * integrator.t
    dt < left <= min(STRETCH * dt, abs(integrator.opts.dtmax)) && set_proposed_dt!(integrator, integrator.tdir * left)
    return nothing
end

"""
The options of `forward` as keywords of SciML's `solve`. Every keyword is always given, each of one type: a
new set of them would be compiled anew.
"""
function solve_keywords(
        info, span; solver, rtol, atol, dt = nothing, adaptive = nothing, max_steps = 10_000, dt_max = nothing, tstops = Float64[],
        controller = "own", keep = :nothing,
    )
    adapts = something(adaptive, info.adaptive)
    !adapts && dt === nothing && throw(ArgumentError("$solver takes fixed steps here: give dt"))
    keep in (:nothing, :states, :dense) || throw(ArgumentError("keep = $(repr(keep)) is not one of :nothing, :states, :dense"))
    length = span[2] - span[1]
    return (;
        reltol = Float64(rtol), abstol = Float64(atol), adaptive = adapts, maxiters = Int(max_steps),
        tstops = collect(Float64, tstops), dt = dt === nothing ? nothing : copysign(Float64(dt), length),
        dtmax = dt_max === nothing ? length : copysign(min(Float64(dt_max), abs(length)), length),
        dense = keep == :dense, save_everystep = keep != :nothing, save_start = true, calck = true, verbose = SILENT,
        controller = controller_of(controller, solver),
    )
end
