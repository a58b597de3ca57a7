"""
A field dz/dt = f(z, p, t) with the derivatives that solvers and gradients need:

    rhs!(du, field, u, p, t)        du = f(u, p, t)
    vjp!(out, field, λ, u, p, t)    out = (∂f/∂u)ᵀ λ
    vjp_p!(out, field, λ, u, p, t)  out = (∂f/∂p)ᵀ λ
    jac!(J, field, u, p, t)         J = ∂f/∂u
    tgrad!(out, field, u, p, t)     out = ∂f/∂t
"""
abstract type AbstractField end

"""
    JuliaField(f!)

A field written in Julia, `f!(du, u, p, t)`, for physics known in closed form. Its derivatives are
by forward-mode automatic differentiation, so `f!` must accept any number type; their cost grows
with the number of states and parameters.
"""
struct JuliaField{F} <: AbstractField
    f!::F
end

Base.copy(field::JuliaField) = field

rhs!(du, field::JuliaField, u, p, t) = (field.f!(du, u, p, t); nothing)

function jac!(J, field::JuliaField, u, p, t)
    ForwardDiff.jacobian!(J, (du, x) -> field.f!(du, x, p, t), similar(u), u)
    return nothing
end

function vjp!(out, field::JuliaField, λ, u, p, t)
    J = similar(u, length(u), length(u))
    jac!(J, field, u, p, t)
    mul!(vec(out), transpose(J), vec(λ))
    return nothing
end

function vjp_p!(out, field::JuliaField, λ, u, p, t)
    J = ForwardDiff.jacobian((du, q) -> field.f!(du, u, q, t), similar(u), p)
    mul!(vec(out), transpose(J), vec(λ))
    return nothing
end

function tgrad!(out, field::JuliaField, u, p, t)
    ForwardDiff.derivative!(out, (du, s) -> field.f!(du, u, p, s), similar(u), t)
    return nothing
end

"""Evaluations of a field: of itself and of its two vector-Jacobian products."""
mutable struct Counts
    rhs::Int
    vjp::Int
    vjp_p::Int
end
Counts() = Counts(0, 0, 0)

"""Whether the field has `jac!` and `tgrad!`; without, implicit solvers take finite differences."""
has_jacobian(::AbstractField) = true

# The functions that SciML is handed. SciMLBase would look up their methods at each solve to see whether
# they work in place, which takes longer than a small network's whole step.
abstract type InPlace <: Function end
SciMLBase.isinplace(::InPlace, ::Int, ::AbstractString = "f", ::Bool = true; _...) = true

"""
The first evaluation of a solve. Solvers ask for it twice, for the size of the first step and as its first stage,
and of the few steps that some solves take it is a large part.
"""
mutable struct First{V}
    t::Float64
    u::V
    du::V
end
First(::Type{T}) where {T} = First(NaN, T[], T[])

struct RightHandSide{F, V} <: InPlace
    field::F
    counts::Counts
    first::First{V}
end

function (f::RightHandSide)(du, u, p, t)
    early = f.counts.rhs <= 2
    early && again!(du, f.first, u, t) && return nothing
    f.counts.rhs += 1
    rhs!(du, f.field, u, p, t)
    early && f.counts.rhs == 1 && remember!(f.first, du, u, t)
    return nothing
end

function again!(du::V, first::First{V}, u::V, t) where {V}
    known = t == first.t && u == first.u
    known && copyto!(du, first.du)
    return known
end
again!(du, ::First, u, t) = false  # arrays of another kind, where to compare them may cost more

function remember!(first::First{V}, du::V, u::V, t) where {V}
    first.t, first.u, first.du = t, copy(u), copy(du)
    return nothing
end
remember!(::First, du, u, t) = nothing

struct Pull{F} <: InPlace
    field::F
    counts::Counts
end
(f::Pull)(out, λ, u, p, t) = (f.counts.vjp += 1; vjp!(out, f.field, λ, u, p, t))

struct PullParameters{F} <: InPlace
    field::F
    counts::Counts
end
(f::PullParameters)(out, λ, u, p, t) = (f.counts.vjp_p += 1; vjp_p!(out, f.field, λ, u, p, t))

struct Jacobian{F} <: InPlace
    field::F
end
(f::Jacobian)(J, u, p, t) = jac!(J, f.field, u, p, t)

struct TimeGradient{F} <: InPlace
    field::F
end
(f::TimeGradient)(out, u, p, t) = tgrad!(out, f.field, u, p, t)

"""The field as SciML wants it, fully specialised: no wrapper stands between it and the solver."""
function odefunction(field::AbstractField, n::Integer, ::Type{T}, stiff::Bool) where {T}
    counts = Counts()
    f, vjp, vjp_p = RightHandSide(field, counts, First(T)), Pull(field, counts), PullParameters(field, counts)
    stiff && has_jacobian(field) || return ODEFunction{true, FullSpecialize}(f; vjp, vjp_p), counts
    return ODEFunction{true, FullSpecialize}(
        f; vjp, vjp_p, jac = Jacobian(field), tgrad = TimeGradient(field), jac_prototype = zeros(T, n, n),
    ), counts
end
