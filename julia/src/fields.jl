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

"""The field as SciML wants it, fully specialised: no wrapper stands between it and the solver."""
function odefunction(field::AbstractField, n::Integer, ::Type{T}, stiff::Bool) where {T}
    counts = Counts()
    f!(du, u, p, t) = (counts.rhs += 1; rhs!(du, field, u, p, t))
    pull!(out, λ, u, p, t) = (counts.vjp += 1; vjp!(out, field, λ, u, p, t))
    pull_p!(out, λ, u, p, t) = (counts.vjp_p += 1; vjp_p!(out, field, λ, u, p, t))
    stiff && has_jacobian(field) || return ODEFunction{true, FullSpecialize}(f!; vjp = pull!, vjp_p = pull_p!), counts
    return ODEFunction{true, FullSpecialize}(
        f!; vjp = pull!, vjp_p = pull_p!, jac = (J, u, p, t) -> jac!(J, field, u, p, t),
        tgrad = (out, u, p, t) -> tgrad!(out, field, u, p, t), jac_prototype = zeros(T, n, n),
    ), counts
end
