# Evaluations of a field that can be pulled back later, several at a time:
#
#     linearize!(e, p, t)   e.k = f(e.u, p, t)
#     pull!(e, λ, p)        e.gz = (∂f/∂u)ᵀ λ, e.gp = (∂f/∂p)ᵀ λ there

"""Of any field: by its two products."""
mutable struct Evaluation{T, F <: AbstractField}
    field::F
    u::Vector{T}
    k::Vector{T}
    gz::Vector{T}
    gp::Vector{T}
    t::Float64
end

"""As many evaluations of states of n entries, with m parameters, as there are stages."""
evaluations!(field::AbstractField, stages, n, m, T) = plain_evaluations(field, stages, n, m, T)

plain_evaluations(field, stages, n, m, ::Type{T}) where {T} =
    [Evaluation(field, zeros(T, n), zeros(T, n), zeros(T, n), zeros(T, m), 0.0) for _ in 1:stages]

function linearize!(e::Evaluation, p, t)
    e.t = t
    rhs!(e.k, e.field, e.u, p, t)
end

function pull!(e::Evaluation, λ, p)
    vjp!(e.gz, e.field, λ, e.u, p, e.t)
    isempty(e.gp) || vjp_p!(e.gp, e.field, λ, e.u, p, e.t)
    return nothing
end

"""
Of a lowered field: its program `pullback` up to where the cotangent is first read, and from there on. What
lies between is kept in memory of the evaluation's own.
"""
struct ProgramEvaluation{T}
    program::Program{T}
    split::Int
    u::Vector{T}
    k::Vector{T}
    gz::Vector{T}
    gp::Vector{T}
end

function linearize!(e::ProgramEvaluation, p, t)
    tick()
    run!(e.program, (e.k, e.gz, e.gp), e.u, t, p, e.u, 1, e.split - 1)
end

function pull!(e::ProgramEvaluation{T}, λ, p) where {T}
    run!(e.program, (e.k, e.gz, e.gp), e.u, e.program.time[1], p, λ, e.split, length(e.program.code))
end
