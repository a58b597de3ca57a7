# Gradients through the solver's own explicit steps, for steps of the sizes that they had: the stages of each
# step are computed again and pulled back in reverse order (Hager 2000, "Runge-Kutta methods in optimal control
# and the transformed adjoint system"; Griewank & Walther 2008). There is no second solve, and outputs between
# steps are pulled back through the dense output that they were read from.

"""What a sweep backwards works with; see `discrete_adjoint`."""
struct Sweep{T, E, V <: AbstractVector{T}, M <: AbstractMatrix{T}}
    method::Method{T}
    evaluations::Vector{E}  # one for each stage
    p::V
    K::M                    # cotangents of the slopes
    after::V                # cotangent of the state after the step
    before::V               # and before it
    of_p::V
    w::Vector{T}
    counts::Counts
end

"""
    discrete_adjoint(field, method, ts, us, p, reads, cotangents, counts)

From the states `us` at the ends of steps `ts` and the cotangents of what was read: dL/du0 and dL/dp.
"""
function discrete_adjoint(
        field::AbstractField, method::Method{T}, ts::Vector{Float64}, us::Vector{V}, p::V,
        reads::Reads, cotangents::AbstractMatrix{T}, counts::Counts,
    ) where {T, V <: AbstractVector{T}}
    n, stages = length(us[1]), length(method.b)
    s = Sweep(
        method, evaluations!(field, stages, p, n), p, zeros_like(p, n, stages), zeros_like(p, n), zeros_like(p, n),
        zeros_like(p, length(p)), zeros(T, stages), counts,
    )
    return sweep!(s, ts, us, reads, cotangents)
end

function sweep!(s::Sweep{T}, ts, us, reads, cotangents) where {T}
    last, next = s.method.last, length(reads.times)
    for m in (length(ts) - 1):-1:1
        next = seed_ends!(s, reads, cotangents, next, ts[m + 1])
        next = pull_step!(s, us[m], us[m + 1], ts[m], ts[m + 1], reads, cotangents, next, m == length(ts) - 1)
    end
    next = seed_ends!(s, reads, cotangents, next, ts[1])
    if length(ts) > 1
        keep_column!(s.K, last, s.method.first)
        pull_stage!(s, last)
        add!(s.after, one(T), s.evaluations[last].gz)
    end
    next == 0 || error("$next outputs lie before the first step")
    return s.after, s.of_p
end

"""Add the cotangents of what was read at the step's end; the number of the outputs that remain."""
function seed_ends!(s::Sweep, reads, cotangents, next, t)
    while next >= 1 && reads.times[next] == t
        add_at!(s.after, reads.after[next], true, cotangents, next)
        next -= 1
    end
    return next
end

"""
From after a step to before it. The slope at its end is that of the next step's beginning: what belongs to
both is pulled back once, here; the last evaluation holds it already, unless this step is the `final` one.
"""
function pull_step!(s::Sweep{T}, u, v, t0, t1, reads, cotangents, next, final) where {T}
    method, E, h = s.method, s.evaluations, T(t1 - t0)
    inside(k) = k >= 1 && (forwards(reads) ? reads.times[k] > t0 : reads.times[k] < t0)
    dense = inside(next)
    stages = dense ? method.full : method.plain
    if final
        fill!(s.K, zero(T))
    else
        keep_column!(s.K, method.last, method.first)
    end
    evaluate!(s, method.first, u, h, t0, ())
    for (place, i) in enumerate(stages)
        if i != method.last
            evaluate!(s, i, u, h, t0 + method.c[i] * (t1 - t0), view(stages, 1:(place - 1)))
        elseif final
            copyto!(E[i].u, v)
            linearize!(E[i], s.p, t1)
            s.counts.rhs += 1
        end
    end
    fill!(s.before, zero(T))
    next = seed_inside!(s, reads, cotangents, next, inside, t0, t1)
    for i in Iterators.reverse(stages)
        i > method.last && pull_through!(s, i, h, stages)
    end
    if dense || !final
        collect_slope!(s, method.last, h, stages)
        pull_stage!(s, method.last)
        add!(s.after, one(T), E[method.last].gz)
    end
    add!(s.before, one(T), s.after)
    spread_state!(s, h)
    for i in Iterators.reverse(stages)
        i < method.last && pull_through!(s, i, h, stages)
    end
    collect_slope!(s, method.first, h, stages)
    copyto!(s.after, s.before)
    # What was the beginning is the end of the step before.
    E[method.first], E[method.last] = E[method.last], E[method.first]
    return next
end

"""Add the cotangents of what was read `inside` a step, through its dense output; the number of the outputs that remain."""
seed_inside!(s::Sweep, reads, cotangents, next, inside, t0, t1) = seed_one_by_one!(s, reads, cotangents, next, inside, t0, t1)

function seed_one_by_one!(s::Sweep{T}, reads, cotangents, next, inside::F, t0, t1) where {T, F}
    h = T(t1 - t0)
    while inside(next)
        weights!(s.w, s.method, (reads.times[next] - t0) / (t1 - t0))
        add_at!(s.before, reads.after[next], true, cotangents, next)
        for i in eachindex(s.w)
            s.w[i] != 0 && add_at!(s.K, (i - 1) * size(s.K, 1) + reads.after[next], h * s.w[i], cotangents, next)
        end
        next -= 1
    end
    return next
end

"""Zero but for one column, which is moved."""
function keep_column!(K::AbstractMatrix{T}, to, from) where {T}
    for j in axes(K, 2)
        j == from || fill!(view(K, :, j), zero(T))
    end
    copyto!(view(K, :, to), view(K, :, from))
    fill!(view(K, :, from), zero(T))
end

"""The slope of a stage, ready to be pulled back; `earlier` are the stages before it beside the first."""
function evaluate!(s::Sweep{T}, i, u, h, t, earlier) where {T}
    stage = s.evaluations[i]
    stage_state!(s, i, u, h, earlier)
    linearize!(stage, s.p, t)
    s.counts.rhs += 1
    return nothing
end

function stage_state!(s::Sweep, i, u, h, earlier)
    A, E, first, stage = s.method.A, s.evaluations, s.method.first, s.evaluations[i]
    copyto!(stage.u, u)
    A[i, first] != 0 && add!(stage.u, h * A[i, first], E[first].k)
    for j in earlier
        A[i, j] != 0 && add!(stage.u, h * A[i, j], E[j].k)
    end
    return nothing
end

"""Pull the cotangent of a stage's slope back: to its state, and to the parameters."""
function pull_stage!(s::Sweep{T}, i) where {T}
    stage = s.evaluations[i]
    pull!(stage, view(s.K, :, i), s.p)
    s.counts.vjp += 1
    add!(s.of_p, one(T), stage.gp)
    return nothing
end

"""And on, from the stage's state to the state before the step and to the slopes before it."""
function pull_through!(s::Sweep{T}, i, h, stages) where {T}
    collect_slope!(s, i, h, stages)
    pull_stage!(s, i)
    add!(s.before, one(T), s.evaluations[i].gz)
    spread_stage!(s, i, h)
    return nothing
end

"""To the slopes that a stage's state is made of, and to those that the new state is made of."""
function spread_stage!(s::Sweep, i, h)
    gz, n = s.evaluations[i].gz, size(s.K, 1)
    for j in 1:(i - 1)
        a = s.method.A[i, j]
        a != 0 && add_at!(s.K, (j - 1) * n, h * a, gz, 1)
    end
end

function spread_state!(s::Sweep, h)
    for i in eachindex(s.method.b)
        s.method.b[i] != 0 && add_at!(s.K, (i - 1) * size(s.K, 1), h * s.method.b[i], s.after, 1)
    end
end

"""What a slope gets of the stages after it, where it is collected for each slope and not spread by each stage."""
collect_slope!(s::Sweep, i, h, stages) = nothing

function add!(y::Vector{T}, a, x::Vector{T}) where {T}
    @inbounds @simd for i in eachindex(y, x)
        y[i] = muladd(a, x[i], y[i])
    end
end

"""y[after + i] += a·X[i, k]."""
function add_at!(y::Array{T}, after, a, X::AbstractVecOrMat, k) where {T}
    rows = size(X, 1)
    checkbounds(y, after + rows)
    @inbounds @simd for i in 1:rows
        y[after + i] = muladd(T(a), X[i, k], y[after + i])
    end
end
