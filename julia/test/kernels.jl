# Ensembles in one kernel, on KernelAbstractions' CPU backend. Not among the package's own tests, since
# it needs DiffEqGPU: `pynode julia test` runs it where that is installed.

using DiffEqGPU, LinearAlgebra, PyNode, Test

relative(a, b) = norm(a - b) / norm(b)

@testset "ensembles in one kernel" begin
    path = joinpath(@__DIR__, "golden", "lotka.json")
    field, case = load_field(path), PyNode.JSON.parsefile(path)["cases"][1]
    z, p = Vector{Float64}(case["z"]), Vector{Float64}(case["p"])
    n, ts = field.width, [0.0, 0.5, 2.0]
    u0s = z .* reshape(range(0.8, 1.2, 7), 1, 7)
    options = (; rtol = 1.0e-8, atol = 1.0e-10)
    @testset "$solver" for solver in ensemble_solvers()
        zs = ensemble(field, u0s, p, ts; solver, options...)
        @test size(zs) == (n, 3, 7)
        for b in (1, 7)
            want = forward(field, u0s[:, b], p, ts; solver = "vern7", rtol = 1.0e-11, atol = 1.0e-12).zs
            @test relative(zs[:, :, b], want) < (solver == "rosenbrock23" ? 1.0e-4 : 1.0e-6)
        end
    end
    @testset "parameters of each, backwards" begin
        ps = p .* reshape(range(0.9, 1.1, 7), 1, 7)
        zs = ensemble(field, u0s, ps, reverse(ts); options...)
        want = forward(field, u0s[:, 3], ps[:, 3], reverse(ts); rtol = 1.0e-11, atol = 1.0e-12).zs
        @test relative(zs[:, :, 3], want) < 1.0e-6
    end
    @testset "fixed steps" begin
        zs = ensemble(field, u0s, p, ts; adaptive = false, dt = 0.01)
        want = forward(field, u0s[:, 2], p, ts; rtol = 1.0e-11, atol = 1.0e-12).zs
        @test relative(zs[:, :, 2], want) < 1.0e-5
    end
    @testset "bad input" begin
        @test_throws ArgumentError ensemble(field, u0s, p, ts; solver = "bdf")
        @test_throws DimensionMismatch ensemble(field, u0s[1:1, :], p, ts)
        @test_throws DimensionMismatch ensemble(field, u0s, p[1:1], ts)
        @test_throws DimensionMismatch ensemble(field, u0s, hcat(p, p), ts)
        @test_throws ArgumentError ensemble(field, u0s, p, ts; adaptive = false)
        @test_throws ArgumentError ensemble(field, u0s, p, ts; backend = :nonsense)
    end
    broken = copy(u0s)
    broken[1, 4] = NaN
    zs = ensemble(field, broken, p, ts; options...)
    @test all(isnan, zs[:, 2:end, 4]) && all(isfinite, zs[:, :, [1:3; 5:7]])
end
