"""A field that was lowered from torch, wherever its memory lies."""
abstract type LoweredField{T} <: AbstractField end

"""
A field that was lowered from torch: programs for f, its vector-Jacobian products, its Jacobian and
its time derivative, or value and products in one (`pullback`), for `rows` samples of `width` entries each. Two tasks need two copies.

All networks are of this one type, so a new one needs no compilation. (It is mutable so that it is one
reference: SciML copies the functions that it is handed, and all that lies in them, at every evaluation.)
"""
mutable struct ProgramField{T} <: LoweredField{T}
    programs::Dict{String, Program{T}}
    f::Program{T}
    vjp_z::Program{T}
    vjp_p::Program{T}
    jac::Program{T}
    tgrad::Program{T}
    pullback::Program{T}
    split::Int  # where the products begin in it, 0 if there is none
    evaluations::Vector{ProgramEvaluation{Program{T}, Vector{T}}}
    rows::Int
    width::Int
    autonomous::Bool
    blocks::Vector{T}
    none::Vector{T}
end

function ProgramField{T}(programs::Dict, rows::Int, width::Int, autonomous::Bool) where {T}
    haskey(programs, "f") || refuse("there is no program f")
    # A program that is not there is an empty one, and asking for it an error that says so.
    get_or_empty(name) = get(() -> Program(Int[], T[], Int[], 0, (; z = -1, t = 1, p = 0, lam = 0), Pair{String, Int}[]), programs, name)
    blocks = haskey(programs, "jac") ? zeros(T, rows * width^2) : T[]
    pullback = get_or_empty("pullback")
    split = haskey(programs, "pullback") ? split_of(pullback) : 0
    return ProgramField{T}(
        programs, programs["f"], map(get_or_empty, ("vjp_z", "vjp_p", "jac", "tgrad"))..., pullback, split,
        ProgramEvaluation{Program{T}, Vector{T}}[], rows, width, autonomous, blocks, T[],
    )
end

Base.copy(f::ProgramField{T}) where {T} =
    ProgramField{T}(Dict(name => copy(program) for (name, program) in f.programs), f.rows, f.width, f.autonomous)

"""
Where the products begin in a pullback: at the first instruction that reads λ, before which all of the value
has been written.
"""
function split_of(program::Program)
    split, next = length(program.code) + 1, 1
    while next <= length(program.code)
        number = program.code[next]
        write, reads, _ = reaches(number, program.code[(next + 2):(next + 1 + WIDTHS[number])])
        any(read -> read.slot == 5, reads) && (split = min(split, next))
        write.slot == 6 && next >= split && refuse("a pullback writes the value after it has read λ")
        next += 2 + WIDTHS[number]
    end
    return split
end

function evaluations!(field::LoweredField{T}, stages, p::AbstractVector{T}, n) where {T}
    field.split == 0 && return plain_evaluations(field, stages, p, n)
    while length(field.evaluations) < stages
        vectors = (zeros_like(p, n), zeros_like(p, n), zeros_like(p, n), zeros_like(p, length(p)))
        push!(field.evaluations, ProgramEvaluation(copy(field.pullback), field.split, vectors...))
    end
    return field.evaluations[1:stages]
end

dense(x::DenseVector{T}, ::Type{T}) where {T} = x
dense(x::AbstractVector{T}, ::Type{T}) where {T} = x isa StridedVector && stride(x, 1) == 1 ? x : collect(x)
dense(x::AbstractVector, ::Type{T}) where {T} = convert(Vector{T}, x)
dense(x::AbstractArray, ::Type{T}) where {T} = dense(vec(x), T)

"""Run a program into `out`, by way of a copy where `out` is not plain memory."""
function into!(program::Program, out, ::Type{T}, z, t, p, λ) where {T}
    target = dense(out, T)
    run!(program, (target,), dense(z, T), t, dense(p, T), dense(λ, T))
    target === out || Base.mightalias(target, out) || copyto!(out, target)
    return nothing
end

rhs!(du, field::LoweredField{T}, u, p, t) where {T} = (tick(); into!(field.f, du, T, u, t, p, field.none))
vjp!(out, field::LoweredField{T}, λ, u, p, t) where {T} = (tick(); into!(field.vjp_z, out, T, u, t, p, λ))
vjp_p!(out, field::LoweredField{T}, λ, u, p, t) where {T} = into!(field.vjp_p, out, T, u, t, p, λ)
tgrad!(out, field::LoweredField{T}, u, p, t) where {T} = into!(field.tgrad, out, T, u, t, p, field.none)

function jac!(J, field::ProgramField{T}, u, p, t) where {T}
    run!(field.jac, (field.blocks,), dense(u, T), t, dense(p, T), field.none)
    n = field.width
    fill!(J, zero(eltype(J)))
    @inbounds for b in 0:(field.rows - 1), i in 1:n, j in 1:n
        J[b * n + i, b * n + j] = field.blocks[(b * n + i - 1) * n + j]
    end
    return nothing
end

# -- interruption -----------------------------------------------------------------------------

"""
Called about every 0.2 s during a solve, on the thread that asked for the solve and no other; an
exception that it throws ends the solve.
"""
const ON_TICK = Ref{Any}(nothing)
const TICKING_THREAD = Ref{Int}(0)
const NEXT_TICK = Ref{UInt64}(0)
const CALLS = Ref{Int}(0)

@inline function tick()
    CALLS[] += 1
    CALLS[] & 0x1f == 0 && check_clock()
    return nothing
end

@noinline function check_clock()
    now = time_ns()
    if ON_TICK[] !== nothing && now > NEXT_TICK[] && Threads.threadid() == TICKING_THREAD[]
        NEXT_TICK[] = now + 200_000_000
        ON_TICK[]()
    end
    return nothing
end
