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

"""The field as SciML wants it, fully specialised: no wrapper stands between it and the solver."""
function odefunction(field::AbstractField, n::Integer, ::Type{T}) where {T}
    return ODEFunction{true, FullSpecialize}(
        (du, u, p, t) -> rhs!(du, field, u, p, t);
        vjp = (out, λ, u, p, t) -> vjp!(out, field, λ, u, p, t),
        vjp_p = (out, λ, u, p, t) -> vjp_p!(out, field, λ, u, p, t),
        jac = (J, u, p, t) -> jac!(J, field, u, p, t),
        tgrad = (out, u, p, t) -> tgrad!(out, field, u, p, t),
        jac_prototype = zeros(T, n, n),
    )
end
