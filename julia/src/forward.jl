"""
What a forward solve leaves.

- `zs`: (n, T), the state at each of the times `ts`;
- `sol`: SciML's solution with dense output, from which gradients are taken;
- `stats`: evaluations of the field, steps;
- `retcode`: `"success"`, `"max_steps"`, `"dt_underflow"` or `"non_finite"`.
"""
struct Forward{S, T, F}
    zs::Matrix{T}
    ts::Vector{Float64}
    sol::S
    field::F
    retcode::String
    stats::NamedTuple
end

const RETCODES = Dict(
    ReturnCode.Success => "success",
    ReturnCode.Default => "success",
    ReturnCode.MaxIters => "max_steps",
    ReturnCode.DtLessThanMin => "dt_underflow",
    ReturnCode.Unstable => "non_finite",
    ReturnCode.DtNaN => "non_finite",
)

"""
    forward(field, u0, p, ts; solver = "tsit5", rtol = 1e-6, atol = 1e-8, dt, adaptive, max_steps, dt_max, tstops)

Solve du/dt = f(u, p, t) from `u0` at `ts[1]` to `ts[end]`; `ts` increases or decreases. Throws an
`ArgumentError` for input that cannot be used; a solve that fails is reported by `retcode`, and the
columns of `zs` that it did not reach hold NaN.
"""
function forward(
        field::AbstractField, u0::AbstractVector{T}, p::AbstractVector, ts::AbstractVector{<:Real};
        solver = "tsit5", rtol = 1.0e-6, atol = 1.0e-8, dt = nothing, adaptive = nothing,
        max_steps = 10_000, dt_max = nothing, tstops = Float64[],
    ) where {T <: AbstractFloat}
    info = solver_info(solver)
    times = check_times(ts)
    adapts = something(adaptive, info.adaptive)
    !adapts && dt === nothing && throw(ArgumentError("$solver takes fixed steps here: give dt"))
    problem = ODEProblem(odefunction(field, length(u0), T), u0, (times[1], times[end]), p)
    span = times[end] - times[1]
    options = Dict{Symbol, Any}(:adaptive => adapts, :maxiters => max_steps, :tstops => tstops)
    dt === nothing || (options[:dt] = copysign(dt, span))
    dt_max === nothing || (options[:dtmax] = copysign(dt_max, span))
    sol = solve(
        problem, info.make(); reltol = rtol, abstol = atol, dense = true, options...,
    )
    retcode = get(RETCODES, sol.retcode, string(sol.retcode))
    stats = (; nfe = sol.stats.nf, accepted = sol.stats.naccept, rejected = sol.stats.nreject,
        jacobians = sol.stats.njacs)
    return Forward(read_off(sol, times, length(u0), T), times, sol, field, retcode, stats)
end

function check_times(ts)
    times = collect(Float64, ts)
    length(times) >= 2 || throw(ArgumentError("two or more times are needed, not $(length(times))"))
    all(isfinite, times) || throw(ArgumentError("times hold NaN or infinity"))
    (issorted(times; lt = <=) || issorted(times; lt = >=)) ||
        throw(ArgumentError("times must increase or decrease strictly: sort them"))
    return times
end

"""The state at all times (n, T), NaN where the solve did not get."""
function read_off(sol, times, n, ::Type{T}) where {T}
    zs = fill(T(NaN), n, length(times))
    reached = sol.t[end]
    forwards = times[end] > times[1]
    for (i, t) in enumerate(times)
        (forwards ? t <= reached : t >= reached) && sol(view(zs, :, i), t)
    end
    return zs
end
