"""Counts of a solve."""
struct Stats
    nfe::Int
    accepted::Int
    rejected::Int
    jacobians::Int
end

"""
What a forward solve leaves.

- `zs`: (n, T), the state at each of the times `ts`;
- `sol`: SciML's solution, with dense output if it was kept (`keep = true`): gradients are taken from it;
- `stats`: evaluations of the field, steps;
- `retcode`: `"success"`, `"max_steps"`, `"dt_underflow"` or `"non_finite"`;
- `t`: the time that was reached.
"""
struct Forward{T, S, F}
    zs::Matrix{T}
    ts::Vector{Float64}
    sol::S
    field::F
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
            controller = "own", keep = true)

Solve du/dt = f(u, p, t) from `u0` at `ts[1]` to `ts[end]`; `ts` increases or decreases. Throws an
`ArgumentError` for input that cannot be used; a solve that fails is reported by `retcode`, and the
columns of `zs` that it did not reach hold NaN.
"""
function forward(
        field::AbstractField, u0::AbstractVector{T}, p::AbstractVector, ts::AbstractVector{<:Real};
        solver::AbstractString = "tsit5", rtol::Real = 1.0e-6, atol::Real = 1.0e-8, dt::Union{Nothing, Real} = nothing,
        adaptive::Union{Nothing, Bool} = nothing, max_steps::Integer = 10_000, dt_max::Union{Nothing, Real} = nothing,
        tstops::AbstractVector{<:Real} = Float64[], controller::AbstractString = "own", keep::Bool = true,
    ) where {T <: AbstractFloat}
    info = solver_info(solver)
    times = check_times(ts)
    f, counts = odefunction(field, length(u0), T, info.stiff)
    problem = ODEProblem(f, u0, (times[1], times[end]), p)
    integrator = init(problem, info.make(); solve_keywords(info, times; solver, rtol, atol, dt, adaptive, max_steps, dt_max, tstops, controller, keep)...)
    zs = keep ? read_off(solve!(integrator), times, length(u0), T) : read_on_the_way(integrator, times, u0)
    sol = integrator.sol
    retcode = get(RETCODES, sol.retcode, lowercase(string(sol.retcode)))
    stats = Stats(counts.rhs, sol.stats.naccept, sol.stats.nreject, sol.stats.njacs)
    return Forward(zs, times, sol, field, retcode, Float64(integrator.t), stats, counts)
end

"""
The options of `forward` as keywords of SciML's `solve`. Every keyword is always given, each of one type: a
new set of them would be compiled anew.
"""
function solve_keywords(info, times; solver, rtol, atol, dt, adaptive, max_steps, dt_max, tstops, controller = "own", keep)
    adapts = something(adaptive, info.adaptive)
    !adapts && dt === nothing && throw(ArgumentError("$solver takes fixed steps here: give dt"))
    span = times[end] - times[1]
    stops = info.lands ? union(times[2:end], tstops) : tstops
    return (;
        reltol = Float64(rtol), abstol = Float64(atol), adaptive = adapts, maxiters = Int(max_steps),
        tstops = collect(Float64, stops), dt = dt === nothing ? nothing : copysign(Float64(dt), span),
        dtmax = dt_max === nothing ? span : copysign(min(Float64(dt_max), abs(span)), span),
        dense = keep, save_everystep = keep, save_start = true, calck = true, verbose = SILENT,
        controller = controller_of(controller, solver),
    )
end

function check_times(ts)
    times = collect(Float64, ts)
    length(times) >= 2 || throw(ArgumentError("two or more times are needed, not $(length(times))"))
    all(isfinite, times) || throw(ArgumentError("times hold NaN or infinity"))
    (issorted(times; lt = <=) || issorted(times; lt = >=)) ||
        throw(ArgumentError("times must increase or decrease strictly: sort them"))
    return times
end

"""The state at all times (n, T) by dense output, NaN where the solve did not get."""
function read_off(sol, times, n, ::Type{T}) where {T}
    zs = fill(T(NaN), n, length(times))
    reached = sol.t[end]
    forwards = times[end] > times[1]
    for (i, t) in enumerate(times)
        (forwards ? t <= reached : t >= reached) && sol(view(zs, :, i), t)
    end
    zs[:, 1] = sol.prob.u0  # itself: interpolants may round
    return zs
end

"""
The state at all times (n, T), read off each step as it is made, NaN where the solve does not get. (SciML's
own way, `saveat`, looks at each time alone and makes vectors of it, which takes as long as the steps.)
"""
function read_on_the_way(integrator, times, u0::AbstractVector{T}) where {T}
    zs = fill(T(NaN), length(u0), length(times))
    zs[:, 1] = u0
    next, forwards = 2, times[end] > times[1]
    for _ in integrator
        t = integrator.t
        while next <= length(times) && (forwards ? times[next] <= t : times[next] >= t)
            here = view(zs, :, next)
            times[next] == t ? copyto!(here, integrator.u) : integrator(here, times[next])
            next += 1
        end
    end
    return zs
end
