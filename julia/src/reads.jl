"""
What is read off a solve from `start` to `stop`: at `times[k]`, in order, the `width` entries of the state after
the first `after[k]`. Times may repeat. `whole` says that each is the whole state.
"""
struct Reads
    start::Float64
    stop::Float64
    times::Vector{Float64}
    after::Vector{Int}
    width::Int
    whole::Bool
end

"""The whole state, of n entries, at each of the times, the first of which is the start."""
function Reads(ts, n::Integer)
    times = check_times(ts)
    return Reads(times[1], times[end], times, zeros(Int, length(times)), n, true)
end

forwards(reads::Reads) = reads.stop > reads.start
places(reads::Reads, k) = (reads.after[k] + 1):(reads.after[k] + reads.width)

function check_times(ts)
    times = collect(Float64, ts)
    length(times) >= 2 || throw(ArgumentError("two or more times are needed, not $(length(times))"))
    all(isfinite, times) || throw(ArgumentError("times hold NaN or infinity"))
    (issorted(times; lt = <=) || issorted(times; lt = >=)) ||
        throw(ArgumentError("times must increase or decrease strictly: sort them"))
    return times
end

unread(reads::Reads, u0::AbstractVector{T}) where {T} = fill!(similar(u0, reads.width, length(reads.times)), T(NaN))

"""What is to be read, by the solution's dense output once it is there, NaN where the solve did not get."""
function read_afterwards(integrator, reads::Reads, u0::AbstractVector{T}) where {T}
    foreach(stretch!, integrator)
    sol = integrator.sol
    zs, reached = unread(reads, u0), sol.t[end]
    for (k, t) in enumerate(reads.times)
        here = view(zs, :, k)
        if t == reads.start
            copyto!(here, view(u0, places(reads, k)))  # itself: interpolants may round
        elseif forwards(reads) ? t <= reached : t >= reached
            reads.whole ? sol(here, t) : sol(here, t; idxs = places(reads, k))
        end
    end
    return zs
end

"""
What is read of each step while it is made, NaN where the solve does not get. (SciML's own way, `saveat`,
looks at each time alone and makes vectors of it, which takes as long as the steps.)
"""
function read_on_the_way(integrator, reads::Reads, u0::AbstractVector{T}) where {T}
    zs, next = unread(reads, u0), 1
    while next <= length(reads.times) && reads.times[next] == reads.start
        zs[:, next] = view(u0, places(reads, next))
        next += 1
    end
    while !SciMLBase.done(integrator)  # what `for _ in integrator` does, which allocates at each step
        step!(integrator)
        stretch!(integrator)
        next = read_step!(zs, integrator, reads, next)
    end
    return zs
end

function read_step!(zs, integrator, reads, next)
    t = integrator.t
    while next <= length(reads.times) && (forwards(reads) ? reads.times[next] <= t : reads.times[next] >= t)
        here, s = view(zs, :, next), reads.times[next]
        if s == t
            copyto!(here, view(integrator.u, places(reads, next)))
        elseif reads.whole
            integrator(here, s)
        else
            integrator(here, s; idxs = places(reads, next))
        end
        next += 1
    end
    return next
end
