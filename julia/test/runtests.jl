using ForwardDiff, LinearAlgebra, PyNode, Test

lotka!(du, u, p, t) = (du[1] = p[1] * u[1] - p[2] * u[1] * u[2]; du[2] = -p[3] * u[2] + p[4] * u[1] * u[2] + 0.1 * sin(t); nothing)

function robertson!(du, u, p, t)
    r1, r2, r3 = p[1] * u[1], p[2] * u[2]^2, p[3] * u[2] * u[3]
    du[1], du[2], du[3] = -r1 + r3, r1 - r2 - r3, r2
    return nothing
end

relative(a, b) = norm(a - b) / norm(b)

const U0, P, TS = [1.0, 1.0], [1.5, 1.0, 3.0, 1.0], [0.0, 0.7, 1.9, 3.0]
const TIGHT = (; rtol = 1.0e-10, atol = 1.0e-12)

loss(zs) = sum(sin, zs) + sum(abs2, view(zs, :, 2))
cotangents(zs) = (g = cos.(zs); g[:, 2] .+= 2 .* zs[:, 2]; g)

"""Central differences of the loss over a vector."""
function differences(f, x; h = 1.0e-5)
    return map(eachindex(x)) do i
        e = zeros(length(x)); e[i] = h * max(1, abs(x[i]))
        (f(x .+ e) - f(x .- e)) / (2e[i])
    end
end

# In one set, so that a failure does not end the run; test_args name some of the files.
@testset "PyNode" begin
    for name in ("solves", "programs", "discrete", "runs", "device")
        isempty(ARGS) || name in ARGS || name == "programs" && !isdisjoint(("discrete", "runs", "device"), ARGS) || continue
        include("$name.jl")
    end
end
