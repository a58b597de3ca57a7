"""
    forward_sensitivities(field, u0, p, ts; solver = "tsit5", rtol, atol, ...)

The states at the times `ts`, and their derivatives with respect to the initial state and the parameters,
by solving for both together:

    dS/dt = ∂f/∂u·S + [0 ∂f/∂p],  S = [∂u/∂u0 ∂u/∂p],  S(t₁) = [I 0].

Returns `(; zs, u0, p, stats)` of sizes (n, T), (n, n, T) and (n, P, T). Steps are chosen for the
sensitivities too. It costs n·(1 + n + P) unknowns and 2n vector-Jacobian products an evaluation: for few states
and parameters, where whole Jacobians are wanted; for one loss of many, [`gradient`](@ref) is cheaper.
Options are those of [`forward`](@ref). Implicit solvers take finite differences of the whole system.

Throws an `ErrorException` if the solve fails.
"""
function forward_sensitivities(
        field::AbstractField, u0::AbstractVector{T}, p::AbstractVector, ts::AbstractVector{<:Real}; options...
    ) where {T <: AbstractFloat}
    n, m = length(u0), length(p)
    start = vcat(u0, vec(Matrix{T}(I, n, n + m)))
    fwd = forward(WithSensitivities(field, n, m, T), start, p, ts; options..., keep = :nothing)
    fwd.retcode == "success" || error("the solve ended at t=$(fwd.t) with $(fwd.retcode)")
    S = reshape(view(fwd.zs, (n + 1):size(fwd.zs, 1), :), n, n + m, :)
    return (; zs = fwd.zs[1:n, :], u0 = S[:, 1:n, :], p = S[:, (n + 1):end, :], stats = fwd.stats)
end

"""A field together with its sensitivities, as one system of the columns u, ∂u/∂u0, ∂u/∂p."""
struct WithSensitivities{T, F <: AbstractField} <: AbstractField
    field::F
    n::Int
    m::Int
    λ::Vector{T}
    row::Vector{T}
    row_p::Vector{T}
    J::Matrix{T}
    of_p::Matrix{T}
end
WithSensitivities(field::F, n, m, ::Type{T}) where {T, F} =
    WithSensitivities{T, F}(field, n, m, zeros(T, n), zeros(T, n), zeros(T, m), zeros(T, n, n), zeros(T, n, m))

has_jacobian(::WithSensitivities) = false

function rhs!(dx, s::WithSensitivities, x, p, t)
    n, u = s.n, x[1:s.n]
    rhs!(view(dx, 1:n), s.field, u, p, t)
    for i in 1:n
        fill!(s.λ, 0)
        s.λ[i] = 1
        vjp!(s.row, s.field, s.λ, u, p, t)
        s.J[i, :] = s.row
        s.m == 0 && continue
        vjp_p!(s.row_p, s.field, s.λ, u, p, t)
        s.of_p[i, :] = s.row_p
    end
    S, dS = reshape(view(x, (n + 1):length(x)), n, n + s.m), reshape(view(dx, (n + 1):length(dx)), n, n + s.m)
    mul!(dS, s.J, S)
    view(dS, :, (n + 1):(n + s.m)) .+= s.of_p
    return nothing
end
