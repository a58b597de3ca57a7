# The sums of a sweep backwards where entries cannot be had one by one and a kernel costs the same for one term as for
# ten: each sum is one kernel, so a slope collects what it gets.

const DeviceSweep = Sweep{T, <:ProgramEvaluation{<:DeviceProgram}} where {T}

add!(y::AbstractVector{T}, a, x::AbstractVector{T}) where {T} = (y .= muladd.(a, x, y); nothing)

function add_at!(y::AbstractArray{T}, after, a, X::AbstractVecOrMat, k) where {T}
    part = view(vec(y), (after + 1):(after + size(X, 1)))
    part .= muladd.(T(a), view(X, :, k), part)
    return nothing
end

"""y = x + Σ a_j k_j, by one kernel."""
combine!(y, x, a, k) = (y .= sum_of(x, a, k); nothing)
sum_of(x, ::Tuple{}, ::Tuple{}) = x
sum_of(x, a::Tuple, k::Tuple) = sum_of(Base.broadcasted(muladd, a[1], k[1], x), Base.tail(a), Base.tail(k))

function stage_state!(s::DeviceSweep{T}, i, u, h, earlier) where {T}
    A, E = s.method.A, s.evaluations
    used = [j for j in Iterators.flatten((s.method.first, earlier)) if A[i, j] != 0]
    combine!(E[i].u, u, Tuple(h * A[i, j] for j in used), Tuple(E[j].k for j in used))
end

spread_stage!(::DeviceSweep, i, h) = nothing
spread_state!(::DeviceSweep, h) = nothing

function collect_slope!(s::DeviceSweep{T}, i, h, stages) where {T}
    (; A, b, last) = s.method
    used = [j for j in stages if j > i && j != last && A[j, i] != 0]
    weights, vectors = T[h * A[j, i] for j in used], typeof(s.after)[s.evaluations[j].gz for j in used]
    if i < last && b[i] != 0
        push!(weights, h * b[i])
        push!(vectors, s.after)
    end
    isempty(weights) || combine!(view(s.K, :, i), view(s.K, :, i), Tuple(weights), Tuple(vectors))
    return nothing
end

"""Whole states that were read inside one step go back by a product of matrices, all at once."""
function seed_inside!(s::DeviceSweep{T}, reads, cotangents, next, inside, t0, t1) where {T}
    reads.whole || return seed_one_by_one!(s, reads, cotangents, next, inside, t0, t1)
    rest = next
    while inside(rest)
        rest -= 1
    end
    rest == next && return next
    outputs, stages = (rest + 1):next, length(s.w)
    weights = ones(T, length(outputs), stages + 1)  # the last column is of the state itself
    for (row, k) in enumerate(outputs)
        weights!(s.w, s.method, (reads.times[k] - t0) / (t1 - t0))
        weights[row, 1:stages] = T(t1 - t0) .* s.w
    end
    there, seeds = copyto!(similar(s.K, size(weights)...), weights), view(cotangents, :, outputs)
    mul!(s.K, seeds, view(there, :, 1:stages), one(T), one(T))
    mul!(s.before, seeds, view(there, :, stages + 1), one(T), one(T))
    return rest
end
