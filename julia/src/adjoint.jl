# The vector-Jacobian products are the field's own (`vjp`, `vjp_p` of the ODEFunction), which
# SciMLSensitivity prefers to automatic differentiation: ZygoteVJP() only fills the place.
const GIVEN = ZygoteVJP()

const SENSITIVITIES = Dict(
    "interpolating" => checkpoints -> InterpolatingAdjoint(autojacvec = GIVEN, checkpointing = checkpoints),
    "gauss" => checkpoints -> GaussAdjoint(autojacvec = GIVEN, checkpointing = checkpoints),
    "quadrature" => checkpoints -> QuadratureAdjoint(autojacvec = GIVEN),
    "backsolve" => checkpoints -> BacksolveAdjoint(autojacvec = GIVEN),
)

"""Names of all ways to compute gradients."""
sensitivities() = sort!(collect(keys(SENSITIVITIES)))

"""
    gradient(fwd, cotangents; sensitivity = "gauss", solver, rtol, atol, dt, adaptive, controller = "own",
             checkpointing = false, times = true)

From ∂L/∂zs (n, T) to `(; u0, p, t)`: dL/du0, dL/dp and dL/dt (left out with `times = false`).

With a(t) the sensitivity of the loss to the state at t, dL/dtᵢ = ∂ℓᵢ/∂z·f(zᵢ, tᵢ), and for the
first time −a(t₁⁺)·f(z₁, t₁), since starting later is starting from another state.
"""
function gradient(
        fwd::Forward{T}, cotangents::AbstractMatrix; sensitivity = "gauss", solver = nothing,
        rtol = 1.0e-6, atol = 1.0e-8, checkpointing = false, times = true, max_steps = 100_000,
        dt = nothing, adaptive = true, controller = "own",
    ) where {T}
    fwd.retcode == "success" || throw(ArgumentError("the solve ended with $(fwd.retcode): it has no gradient"))
    size(cotangents) == size(fwd.zs) ||
        throw(ArgumentError("cotangents are $(size(cotangents)), the outputs $(size(fwd.zs))"))
    haskey(SENSITIVITIES, sensitivity) || throw(
        ArgumentError("sensitivity $(repr(sensitivity)) is not one of $(join(sensitivities(), ", "))"))
    fwd.sol.dense || throw(ArgumentError("the solve kept no dense output: solve with keep = true"))
    alg = solver === nothing ? adjoint_algorithm(fwd.sol.alg) : solver_info(solver).make()
    # The Jacobians of these two are of state and parameters together; the pattern in `alg` is of the state alone.
    implicit = fwd.sol.prob.f.jac_prototype !== nothing && (solver === nothing || solver_info(solver).stiff)
    implicit && sensitivity in ("interpolating", "backsolve") &&
        throw(ArgumentError("$sensitivity by an implicit method would solve linear systems of the size of all parameters: take gauss or quadrature"))
    alg isa FBDF && throw(ArgumentError("the adjoint jumps at the output times, which fbdf, a multistep method, does not follow: take rodas5p"))
    !adaptive && dt === nothing && throw(ArgumentError("fixed steps of the adjoint need dt"))
    du0, dp = adjoint_sensitivities(
        fwd.sol, alg; t = fwd.ts[2:end], dgdu_discrete = Seed(cotangents),
        sensealg = SENSITIVITIES[sensitivity](checkpointing), reltol = Float64(rtol), abstol = Float64(atol),
        maxiters = Int(max_steps), verbose = SILENT, adaptive, controller = controller_of(controller, something(solver, "")),
        dt = dt === nothing ? nothing : copysign(Float64(dt), fwd.ts[1] - fwd.ts[end]),
    )
    after = vec(du0)
    of_times = times ? time_gradient(fwd, cotangents, after) : Float64[]
    return (; u0 = after .+ view(cotangents, :, 1), p = dp === nothing ? T[] : vec(dp), t = of_times)
end

"""
The method of the adjoint where none is asked for: that of the solve, but a one-step method for FBDF, which
does not restart after the adjoint's jumps.
"""
adjoint_algorithm(alg) = alg
adjoint_algorithm(::FBDF) = solver_info("rodas5p").make()

"""
The cotangent of each output but the first, which is u0 itself: its own is added to the result.

A type of its own, so that SciMLSensitivity compiles once for all.
"""
struct Seed{M}
    cotangents::M
end
(seed::Seed)(out, u, p, t, i) = (out .= view(seed.cotangents, :, i + 1); nothing)

function time_gradient(fwd::Forward, cotangents, after)
    p, du = fwd.sol.prob.p, similar(fwd.zs, size(fwd.zs, 1))
    slopes = map(eachindex(fwd.ts)) do i
        rhs!(du, fwd.field, fwd.zs[:, i], p, fwd.ts[i])
        dot(i == 1 ? -after : view(cotangents, :, i), du)
    end
    return slopes
end
