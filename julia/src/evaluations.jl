# Evaluations of a field that can be pulled back later, several at a time:
#
#     linearize!(e, p, t)   e.k = f(e.u, p, t)
#     pull!(e, λ, p)        e.gz = (∂f/∂u)ᵀ λ, e.gp = (∂f/∂p)ᵀ λ there

"""Of any field: by its two products."""
mutable struct Evaluation{V, F <: AbstractField}
    field::F
    u::V
    k::V
    gz::V
    gp::V
    t::Float64
end

"""As many evaluations of states of n entries, with parameters like `p`, as there are stages."""
evaluations!(field::AbstractField, stages, p, n) = plain_evaluations(field, stages, p, n)

plain_evaluations(field, stages, p, n) =
    [Evaluation(field, zeros_like(p, n), zeros_like(p, n), zeros_like(p, n), zeros_like(p, length(p)), 0.0) for _ in 1:stages]

zeros_like(x::AbstractArray{T}, dims...) where {T} = fill!(similar(x, dims), zero(T))

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
struct ProgramEvaluation{P, V}
    program::P
    split::Int
    u::V
    k::V
    gz::V
    gp::V
end

function linearize!(e::ProgramEvaluation, p, t)
    tick()
    run!(e.program, (e.k, e.gz, e.gp), e.u, t, p, e.u, 1, e.split - 1)
end

function pull!(e::ProgramEvaluation, λ, p)
    run!(e.program, (e.k, e.gz, e.gp), e.u, time_of(e.program), p, λ, e.split)
end
