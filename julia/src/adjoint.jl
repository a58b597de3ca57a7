# The vector-Jacobian products are the field's own (`vjp`, `vjp_p` of the ODEFunction), which
# SciMLSensitivity prefers to automatic differentiation: ZygoteVJP() only fills the place.
const GIVEN = ZygoteVJP()

const ADJOINTS = Dict(
    "interpolating" => checkpoints -> InterpolatingAdjoint(autojacvec = GIVEN, checkpointing = checkpoints),
    "gauss" => checkpoints -> GaussAdjoint(autojacvec = GIVEN, checkpointing = checkpoints),
    "quadrature" => checkpoints -> QuadratureAdjoint(autojacvec = GIVEN),
    "backsolve" => checkpoints -> BacksolveAdjoint(autojacvec = GIVEN),
)

"""Names of all ways to compute gradients."""
sensitivities() = sort!(["discrete"; collect(keys(ADJOINTS))])

"""
    gradient(fwd, cotangents; sensitivity = "gauss", solver, rtol, atol, dt, adaptive, controller = "own",
             checkpointing = false, times = true)

From ∂L/∂zs (n, T) to `(; u0, p, t)`: dL/du0, dL/dp and dL/dt (left out with `times = false`).

"discrete" goes back through the steps of the solve itself, which must be an explicit one. The others solve the
adjoint equation; solver, tolerances, step size and controller are of that solve, and mean nothing to "discrete".

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
    sensitivity in sensitivities() || throw(
        ArgumentError("sensitivity $(repr(sensitivity)) is not one of $(join(sensitivities(), ", "))"))
    fwd.keep == :dense || sensitivity == "discrete" && fwd.keep == :states ||
        throw(ArgumentError("the solve did not keep what $sensitivity needs: solve with keep = :dense"))
    du0, dp = sensitivity == "discrete" ? through_steps(fwd, cotangents) :
        Base.inferencebarrier(by_adjoint)(fwd, cotangents, sensitivity, solver; rtol, atol, checkpointing, max_steps, dt, adaptive, controller)
    times && !fwd.reads.whole && throw(ArgumentError("there are gradients of times only where whole states are read"))
    return (; u0 = du0, p = dp, t = times ? time_gradient(fwd, cotangents, du0) : Float64[])
end

function through_steps(fwd::Forward{T}, cotangents) where {T}
    solver_info(fwd.solver).stiff && throw(ArgumentError("discrete is for explicit solvers, not for $(fwd.solver): take gauss"))
    method, p = method_of(fwd.solver, T, fwd.fixed; fwd.controller), fwd.sol.prob.p
    return discrete_adjoint(fwd.field, method, fwd.sol.t, fwd.sol.u, p, fwd.reads, cotangents, fwd.counts)
end

function by_adjoint(fwd::Forward{T}, cotangents, sensitivity, solver; rtol, atol, checkpointing, max_steps, dt, adaptive, controller) where {T}
    check_solver(fwd.field, solver)
    alg = solver === nothing ? adjoint_algorithm(fwd.sol.alg) : solver_info(solver).make()
    # The Jacobians of these two are of state and parameters together; the pattern in `alg` is of the state alone.
    implicit = fwd.sol.prob.f.jac_prototype !== nothing && (solver === nothing || solver_info(solver).stiff)
    implicit && sensitivity in ("interpolating", "backsolve") &&
        throw(ArgumentError("$sensitivity by an implicit method would solve linear systems of the size of all parameters: take gauss or quadrature"))
    alg isa FBDF && throw(ArgumentError("the adjoint jumps at the output times, which fbdf, a multistep method, does not follow: take rodas5p"))
    !adaptive && dt === nothing && throw(ArgumentError("fixed steps of the adjoint need dt"))
    seed = Seed(fwd.reads, cotangents)
    du0, dp = adjoint_sensitivities(
        fwd.sol, alg; t = seed.times, dgdu_discrete = seed,
        sensealg = ADJOINTS[sensitivity](checkpointing), reltol = Float64(rtol), abstol = Float64(atol),
        maxiters = Int(max_steps), verbose = SILENT, adaptive, controller = controller_of(controller, something(solver, "")),
        dt = dt === nothing ? nothing : copysign(Float64(dt), fwd.reads.start - fwd.reads.stop),
    )
    of_u0 = vec(du0)
    add_first!(of_u0, fwd.reads, cotangents)
    return of_u0, dp === nothing ? T[] : vec(dp)
end

"""
The method of the adjoint where none is asked for: that of the solve, but a one-step method for FBDF, which
does not restart after the adjoint's jumps.
"""
adjoint_algorithm(alg) = alg
adjoint_algorithm(::FBDF) = solver_info("rodas5p").make()

"""
The cotangent of the state at each time but the first, where the state is u0 itself: what is read there is
added to the result (`add_first!`).

A type of its own, so that SciMLSensitivity compiles once for all.
"""
struct Seed{M}
    reads::Reads
    cotangents::M
    times::Vector{Float64}
    outputs::Vector{UnitRange{Int}}  # those at each time
end

function Seed(reads::Reads, cotangents)
    times, outputs, k = Float64[], UnitRange{Int}[], 1
    while k <= length(reads.times)
        same = k
        while same < length(reads.times) && reads.times[same + 1] == reads.times[k]
            same += 1
        end
        if reads.times[k] != reads.start
            push!(times, reads.times[k])
            push!(outputs, k:same)
        end
        k = same + 1
    end
    if isempty(times) || times[end] != reads.stop  # the adjoint begins there
        push!(times, reads.stop)
        push!(outputs, 1:0)
    end
    return Seed(reads, cotangents, times, outputs)
end

function (seed::Seed)(out, u, p, t, i)
    fill!(out, 0)
    foreach(k -> add_output!(out, seed.reads, seed.cotangents, k), seed.outputs[i])
end

add_output!(out, reads, cotangents, k) = add_at!(out, reads.after[k], true, cotangents, k)

add_first!(out, reads, cotangents) =
    foreach(k -> reads.times[k] == reads.start && add_output!(out, reads, cotangents, k), eachindex(reads.times))

function time_gradient(fwd::Forward, cotangents, du0)
    p, du, times = fwd.sol.prob.p, similar(fwd.zs, size(fwd.zs, 1)), fwd.reads.times
    later = du0 .- view(cotangents, :, 1)
    slopes = map(eachindex(times)) do i
        rhs!(du, fwd.field, fwd.zs[:, i], p, times[i])
        dot(i == 1 ? -later : view(cotangents, :, i), du)
    end
    return slopes
end
