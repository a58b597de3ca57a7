"""
Solves for a caller in the same process that knows addresses only: no arrays cross, so a call costs
little more than the solve. The caller keeps its memory alive and unmoved until the call returns.

Numbers go in and out by two blocks, of Int64 and of Float64, whose places are named below. Fields and
solves are known by numbers.
"""
module Memory

using ..PyNode: PyNode, AbstractField, CallbackField, DeviceField, Forward, JuliaField, Reads, enter, ensemble, forward, gradient, parse_field, settle

const FIELDS = Dict{Int, AbstractField}()
const LAST = Ref(0)
next_number() = (LAST[] += 1)

"""
`f()`, such that in any thread comes what it waits for: the compiler of a GPU's kernels, say, which is a process
of its own. Outside of a threaded region only Julia's first thread looks for such events, and that thread may be
busy with the caller's code, or wait for this one.
"""
@inline listening(f::F) where {F} = Threads.threadid() == 1 ? f() : in_region(f)

function in_region(f)
    ccall(:jl_enter_threaded_region, Cvoid, ())
    try
        return f()
    finally
        ccall(:jl_exit_threaded_region, Cvoid, ())
    end
end

"""Load a package, in any thread: it may have to be compiled, in a process."""
load(name::AbstractString) = (listening(() -> Core.eval(Main, Expr(:import, Expr(:., Symbol(name))))); nothing)

"""Keep a lowered field (the text of its file); gives its number."""
open_program(text::AbstractString) = (FIELDS[next_number()] = parse_field(text); LAST[])

"""
Keep a field written in Julia: the text of a function `f!(du, u, p, t)`, which is compiled here. It is
called by dynamic dispatch, so that the solvers need not be compiled again for it.
"""
function open_source(text::AbstractString)
    # A module of its own for each, so that no source redefines another's f!, and one that stays.
    place = Core.eval(@__MODULE__, Expr(:module, true, gensym("source"), Expr(:block)))
    f! = Core.eval(place, Meta.parseall(text))
    f! isa Function || throw(ArgumentError("the source must end in a function f!(du, u, p, t), not in $(typeof(f!))"))
    FIELDS[next_number()] = JuliaField{Function}(f!)
    return LAST[]
end

"""Keep a field that the caller evaluates, see [`CallbackField`](@ref)."""
function open_callback(float32::Bool, f, vjp_z, vjp_p)
    FIELDS[next_number()] = CallbackField{float32 ? Float32 : Float64}(f, vjp_z, vjp_p)
    return LAST[]
end

"""
Keep a lowered field on a device, see [`DeviceField`](@ref): `"cuda:0"`, or `"kernels"`. Addresses of states,
parameters, outputs and cotangents are there then; those of times and of the blocks never.
"""
function open_program_on(text::AbstractString, place::AbstractString)
    FIELDS[next_number()] = DeviceField(parse_field(text), PyNode.backend_of(place))
    return LAST[]
end

close_field(id::Integer) = (delete!(FIELDS, id); nothing)
close_solve(id::Integer) = (delete!(SOLVES, id); nothing)

"""The places of the parameter vector's pieces: addresses and sizes, a column each."""
pieces(i) = array(Int64, i[PARAMETERS], 2, i[PIECES])

"""The parameter vector, copied: the caller may change its memory before the gradient."""
function gathered(::AbstractField, ::Type{T}, i) where {T}
    places = pieces(i)
    p, at = Vector{T}(undef, sum(view(places, 2, :); init = 0)), 1
    for (address, n) in eachcol(places)
        unsafe_copyto!(pointer(p, at), Ptr{T}(address % UInt), n)
        at += n
    end
    return p
end

"""The gradient of the parameters to where its pieces belong."""
function scatter!(::AbstractField, i, p::AbstractVector{T}) where {T}
    at = 1
    for (address, n) in eachcol(pieces(i))
        GC.@preserve p unsafe_copyto!(Ptr{T}(address % UInt), pointer(p, at), n)
        at += n
    end
end

array(::Type{T}, address::Integer, dims...) where {T} = unsafe_wrap(Array, Ptr{T}(address % UInt), dims)

"""An array where the field's states are."""
array(::AbstractField, ::Type{T}, address::Integer, dims...) where {T} = array(T, address, dims...)
number(x) = isnan(x) ? nothing : x

# Places in the block of Int64, as the caller counts them plus one.
const N, P, TIMES, Z0, PARAMETERS, TS, ZS, FLOAT32, ADAPTIVE, MAX_STEPS, KEEP, STOPS, STOPS_AT = 1:13
const NFE, ACCEPTED, REJECTED, JACOBIANS = 14:17
const COTANGENTS, GRAD_Z0, PIECES, CHECKPOINTING, SAMPLES, ELEMENTARY, WIDTH, AFTER, FORGET = 18:26
const SOLVER, RETCODE, NUMBER, FAILED = 27:30
const INTS, FLOATS = 30, 8

"""Solves of all samples, each by itself, and which of the outputs are whose."""
struct Each{F <: Forward, O}
    solves::Vector{F}
    own::Vector{O}
end

"""A solve that was kept: of all samples together, or of each by itself."""
const Kept = Union{Forward, Each}
const SOLVES = Dict{Int, Kept}()

"""
Solve. `ints` and `floats` are addresses of the blocks; floats are rtol, atol, dt, dt_max (NaN for
none), on return the time that was reached, and the span's start and end. What is read at `TS`, `TIMES` of
them, goes to `ZS`: the whole state, or, where `AFTER` has an address, the `WIDTH` entries after so many.
The parameter vector is in `PIECES` pieces: at `PARAMETERS` are the address and size of each.
With `SAMPLES` = B > 0 the field is that of one sample of N entries, and B of them are solved, each by itself,
on all threads. The kept solve `FORGET` is let go, if it is not 0. `SOLVER` is a place in `solver_names()`.

Out go `RETCODE`, a place in `retcodes()`, `NUMBER`, of the solve (0 if it was not kept), and `FAILED`, the first
sample that failed (-1 for none); places and samples are counted from 0.
"""
solve!(id::Integer, ints::Integer, floats::Integer) = listening(() -> solve_kept!(id, ints, floats))

function solve_kept!(id, ints, floats)
    i, x = array(Int64, ints, INTS), array(Float64, floats, FLOATS)
    T = i[FLOAT32] == 1 ? Float32 : Float64
    PyNode.TICKING_THREAD[] = Threads.threadid()
    i[FORGET] == 0 || close_solve(i[FORGET])
    field, solver = FIELDS[id], NAMES[i[SOLVER] + 1]
    retcode, i[NUMBER], i[FAILED] = i[SAMPLES] == 0 ? solve_joint(T, field, solver, i, x) : solve_each(T, field, solver, i, x)
    place = findfirst(==(retcode), CODES)
    place === nothing && error("the solve ended with $retcode, for which there is no name here")
    i[RETCODE] = place - 1
    return nothing
end

const NAMES = PyNode.solvers()
const CODES = sort!(unique(values(PyNode.RETCODES)))
solver_names() = join(NAMES, " ")
retcodes() = join(CODES, " ")

function called(id::Int64, ints::Int64, floats::Int64)::Int64
    try
        solve!(id, ints, floats)
        return 0
    catch error
        FAILURE[] = error
        return 1
    end
end

"""
`solve!` as the address of a C function, which takes three Int64 and gives 0, or 1 where there was an exception:
`failure()` throws it. (A call by way of the bridge takes longer than some of a small network's steps.)
"""
solve_address() = Int(@cfunction(called, Int64, (Int64, Int64, Int64)))

const FAILURE = Ref{Any}(nothing)
function failure()
    error, FAILURE[] = FAILURE[], nothing
    throw(error)
end

const KEPT = (:nothing, :states, :dense)
controller(i) = i[ELEMENTARY] == 1 ? "i" : "own"

"""What is to be read off: the caller's times, copied, for they are kept."""
function reads_of(i, x)
    times, whole = copy(array(Float64, i[TS], i[TIMES])), i[AFTER] == 0
    after = whole ? zeros(Int, length(times)) : copy(array(Int64, i[AFTER], i[TIMES]))
    return Reads(x[6], x[7], times, after, i[WIDTH], whole)
end

function solve_one(field, u0, p, reads, solver, i, x)
    adaptive = i[ADAPTIVE] < 0 ? nothing : i[ADAPTIVE] == 1
    return forward(
        field, u0, p, reads; solver, rtol = x[1], atol = x[2], dt = number(x[3]),
        dt_max = number(x[4]), adaptive, max_steps = i[MAX_STEPS], keep = KEPT[i[KEEP] + 1], controller = controller(i),
        tstops = array(Float64, i[STOPS_AT], i[STOPS]),
    )
end

# The solver keeps u0 for the gradient, as it does p: copies.
function solve_joint(::Type{T}, field, solver, i, x) where {T}
    enter(field)
    p = gathered(field, T, i)
    found = solve_one(field, copy(array(field, T, i[Z0], i[N])), p, reads_of(i, x), solver, i, x)
    copyto!(array(field, T, i[ZS], i[WIDTH], i[TIMES]), found.zs)
    settle(field)
    count!(i, found.stats)
    x[5] = found.t
    return found.retcode, keep(found, i), -1
end

function solve_each(::Type{T}, field, solver, i, x) where {T}
    p, u0s = gathered(field, T, i), copy(array(T, i[Z0], i[N], i[SAMPLES]))
    zs = array(T, i[ZS], i[WIDTH], i[TIMES])
    reads, own = own_reads(reads_of(i, x), i[N], i[SAMPLES])
    found = on_threads(i[SAMPLES], field) do mine, b
        one = solve_one(mine, u0s[:, b], p, reads[b], solver, i, x)
        write_own!(zs, own[b], b, one.zs)
        one
    end
    count!(i, PyNode.total(map(one -> one.stats, found)))
    failed = findfirst(one -> one.retcode != "success", found)
    worst = something(failed, 1)
    x[5] = found[worst].t
    return found[worst].retcode, keep(Each(found, own), i), failed === nothing ? -1 : failed - 1
end

"""What each of B samples of n entries reads, as of a state of its own, and which of all reads those are."""
function own_reads(reads::Reads, n, samples)
    here(times) = Reads(reads.start, reads.stop, times, zeros(Int, length(times)), n, true)
    reads.whole && return fill(here(reads.times), samples), fill(nothing, samples)
    own = [Int[] for _ in 1:samples]
    foreach(k -> push!(own[reads.after[k] ÷ n + 1], k), eachindex(reads.times))
    return [here(reads.times[ks]) for ks in own], own
end

# Each sample's part of what is read: of every state, or whole columns.
rows(b, n) = ((b - 1) * n + 1):(b * n)
write_own!(zs, ::Nothing, b, one) = (zs[rows(b, size(one, 1)), :] = one)
write_own!(zs, own, b, one) = (zs[:, own] = one)
read_own(zs, ::Nothing, b, n) = zs[rows(b, n), :]
read_own(zs, own, b, n) = zs[:, own]

"""`f(field, b)` for b in 1:count, in chunks on all threads, each with a copy of the field."""
function on_threads(f, count, field)
    first = f(field, 1)
    results = Vector{typeof(first)}(undef, count)
    results[1] = first
    chunks = [2 + c:Threads.nthreads():count for c in 0:(min(Threads.nthreads(), count - 1) - 1)]
    tasks = map(chunk -> Threads.@spawn((own = copy(field); foreach(b -> results[b] = f(own, b), chunk))), chunks[2:end])
    isempty(chunks) || foreach(b -> results[b] = f(field, b), chunks[1])
    foreach(fetch, tasks)
    return results
end

function count!(i, stats::PyNode.Stats)
    i[NFE], i[ACCEPTED], i[REJECTED], i[JACOBIANS] = stats.nfe, stats.accepted, stats.rejected, stats.jacobians
end

function keep(found, i)
    i[KEEP] == 0 && return 0
    SOLVES[next_number()] = found
    return LAST[]
end

"""
Gradients of a kept solve: cotangents like what was read in, dL/dz0 and, in the pieces at `PARAMETERS`, dL/dp
out. Floats: rtol, atol, dt.
Counts evaluations and vector-Jacobian products in the places of `NFE` and `ACCEPTED`.
"""
gradient!(id::Integer, sensitivity::AbstractString, solver, ints::Integer, floats::Integer) =
    listening(() -> gradient_kept!(id, sensitivity, solver, ints, floats))

function gradient_kept!(id, sensitivity, solver, ints, floats)
    i, x = array(Int64, ints, INTS), array(Float64, floats, FLOATS)
    kept = SOLVES[id]
    PyNode.TICKING_THREAD[] = Threads.threadid()
    before = evaluations(kept)
    gradient_of(kept, sensitivity, solver, i, x)
    i[NFE], i[ACCEPTED] = evaluations(kept) .- before
    return nothing
end

evaluations(kept::Forward) = (kept.counts.rhs, kept.counts.vjp + kept.counts.vjp_p)
evaluations(kept::Each) = reduce(.+, evaluations.(kept.solves))

function gradient_one(kept, seeds, sensitivity, solver, i, x)
    return gradient(
        kept, seeds; sensitivity, solver, rtol = x[1], atol = x[2], checkpointing = i[CHECKPOINTING] == 1, times = false,
        max_steps = i[MAX_STEPS], adaptive = i[ADAPTIVE] != 0, dt = number(x[3]), controller = controller(i),
    )
end

function gradient_of(kept::Forward{T}, sensitivity, solver, i, x) where {T}
    field = kept.field
    enter(field)
    found = gradient_one(kept, array(field, T, i[COTANGENTS], i[WIDTH], i[TIMES]), sensitivity, solver, i, x)
    copyto!(array(field, T, i[GRAD_Z0], i[N]), found.u0)
    scatter!(field, i, found.p)
    settle(field)
end

function gradient_of(kept::Each{<:Forward{T}}, sensitivity, solver, i, x) where {T}
    seeds = array(T, i[COTANGENTS], i[WIDTH], i[TIMES])
    of_z0 = array(T, i[GRAD_Z0], i[N], i[SAMPLES])
    of_p = on_threads(i[SAMPLES], nothing) do _, b
        found = gradient_one(kept.solves[b], read_own(seeds, kept.own[b], b, i[N]), sensitivity, solver, i, x)
        of_z0[:, b] = found.u0
        found.p
    end
    scatter!(kept.solves[1].field, i, sum(of_p))
end

"""
Solve an ensemble in one kernel, see [`ensemble`](@ref): `SAMPLES` states of `N` entries at `Z0`, as many sets
of `P` parameters, and (N, SAMPLES, TIMES) states out at `ZS`. Floats: rtol, atol, dt.
"""
function ensemble!(id::Integer, solver::AbstractString, backend::AbstractString, ints::Integer, floats::Integer)
    i, x = array(Int64, ints, INTS), array(Float64, floats, FLOATS)
    T = i[FLOAT32] == 1 ? Float32 : Float64
    return listening(() -> ensemble_as(T, FIELDS[id], solver, Symbol(backend), i, x))
end

function ensemble_as(::Type{T}, field, solver, backend, i, x) where {T}
    u0s, ps = copy(array(T, i[Z0], i[N], i[SAMPLES])), copy(array(T, i[PARAMETERS], i[P], i[SAMPLES]))
    zs = ensemble(
        field, u0s, ps, array(Float64, i[TS], i[TIMES]); solver, rtol = x[1], atol = x[2], dt = number(x[3]),
        adaptive = i[ADAPTIVE] == 1, backend,
    )
    permutedims!(array(T, i[ZS], i[N], i[SAMPLES], i[TIMES]), zs, (1, 3, 2))
    return nothing
end

"""Dense output of a kept solve at `count` times, (n, count)."""
function evaluate!(id::Integer, count::Integer, times::Integer, out::Integer)
    return listening(() -> evaluate_as(SOLVES[id], count, times, out))
end

function evaluate_as(kept::Forward{T}, count, times, out) where {T}
    enter(kept.field)
    ts = array(Float64, times, count)
    zs = array(kept.field, T, out, length(kept.sol.prob.u0), count)
    foreach(j -> kept.sol(view(zs, :, j), ts[j]), 1:count)
    settle(kept.field)
    return nothing
end

function evaluate_as(kept::Each{<:Forward{T}}, count, times, out) where {T}
    ts, solves = array(Float64, times, count), kept.solves
    zs = array(T, out, length(solves[1].sol.prob.u0), length(solves), count)
    for b in eachindex(solves), j in 1:count
        solves[b].sol(view(zs, :, b, j), ts[j])
    end
    return nothing
end

"""`f` is called about every 0.2 s during a solve and may throw to end it; `nothing` for none."""
on_tick(f) = (PyNode.ON_TICK[] = f; nothing)

include("device_memory.jl")

end
