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

@testset "forward" begin
    field = JuliaField(lotka!)
    reference = forward(field, U0, P, TS; solver = "vern7", rtol = 1.0e-13, atol = 1.0e-13).zs
    @testset "$name" for name in solvers()
        info = PyNode.SOLVERS[name]
        tol = info.order < 3 ? 1.0e-6 : 1.0e-9
        options = info.adaptive ? (; rtol = tol, atol = tol, max_steps = 200_000) : (; dt = 1.0e-5, max_steps = 10^6)
        fwd = forward(field, U0, P, TS; solver = name, options...)
        @test fwd.retcode == "success"
        @test fwd.zs[:, 1] == U0
        @test relative(fwd.zs, reference) < (info.adaptive ? 2000tol : 1.0e-3)
        @test fwd.stats.nfe > 0
    end
    back = forward(field, reference[:, end], P, reverse(TS); TIGHT...)
    @test relative(back.zs[:, end], U0) < 1.0e-8
    fixed = forward(field, U0, P, TS; solver = "tsit5", adaptive = false, dt = 0.01)
    @test fixed.stats.accepted == 300
end

@testset "stiff" begin
    p = [0.04, 3.0e7, 1.0e4]
    reference = [0.01786592, 7.274747e-8, 0.9821340]  # Robertson at t = 1e5, scipy's Radau at 1e-10
    @testset "$name" for name in ("rosenbrock23", "rodas4", "rodas5p", "trbdf2", "kencarp4", "kvaerno5", "fbdf", "auto")
        fwd = forward(JuliaField(robertson!), [1.0, 0, 0], p, [0.0, 1.0e5]; solver = name, rtol = 1.0e-7, atol = 1.0e-11, max_steps = 10^5)
        @test fwd.retcode == "success"
        @test maximum(abs, fwd.zs[:, end] ./ reference .- 1) < 1.0e-3
    end
end

@testset "gradients" begin
    field = JuliaField(lotka!)
    run(u0, p, ts) = loss(forward(field, u0, p, ts; rtol = 1.0e-12, atol = 1.0e-13, solver = "vern7").zs)
    du0 = differences(u -> run(u, P, TS), U0)
    dp = differences(p -> run(U0, p, TS), P)
    dt = differences(ts -> run(U0, P, ts), TS)
    @testset "$sensitivity, $solver" for sensitivity in sensitivities(), solver in ("tsit5", "vern7", "dp5")
        fwd = forward(field, U0, P, TS; solver, TIGHT...)
        g = gradient(fwd, cotangents(fwd.zs); sensitivity, TIGHT...)
        @test relative(g.u0, du0) < 1.0e-6
        @test relative(g.p, dp) < 1.0e-6
        @test relative(g.t, dt) < 1.0e-6
    end
    @testset "checkpointing $sensitivity" for sensitivity in ("interpolating", "gauss")
        fwd = forward(field, U0, P, TS; TIGHT...)
        g = gradient(fwd, cotangents(fwd.zs); sensitivity, checkpointing = true, TIGHT...)
        @test relative(g.p, dp) < 1.0e-6
    end
end

@testset "stiff gradients" begin
    field, u0, p, ts = JuliaField(robertson!), [1.0, 0, 0], [0.04, 3.0e7, 1.0e4], [0.0, 0.3, 40.0]
    scaled(q) = sum(forward(field, u0, q, ts; solver = "rodas5p", rtol = 1.0e-11, atol = 1.0e-15).zs[1, 2:end])
    exact = differences(x -> scaled(exp.(x)), log.(p); h = 1.0e-5) ./ p
    @testset "$sensitivity, $solver" for sensitivity in ("gauss", "quadrature"), solver in ("rodas5p", "kencarp4", "fbdf")
        fwd = forward(field, u0, p, ts; solver, rtol = 1.0e-9, atol = 1.0e-13, max_steps = 10^5)
        g = zeros(3, 3); g[1, 2:end] .= 1
        got = gradient(fwd, g; sensitivity, rtol = 1.0e-9, atol = 1.0e-13).p
        @test relative(got .* p, exact .* p) < 1.0e-4
    end
end

@testset "bad input" begin
    field = JuliaField(lotka!)
    @test_throws ArgumentError forward(field, U0, P, TS; solver = "nonsense")
    @test_throws ArgumentError forward(field, U0, P, [0.0, 1.0, 0.5])
    @test_throws ArgumentError forward(field, U0, P, [0.0])
    @test_throws ArgumentError forward(field, U0, P, TS; solver = "euler")
    fwd = forward(field, U0, P, TS; max_steps = 3)
    @test fwd.retcode == "max_steps" && isnan(fwd.zs[1, end]) && fwd.zs[:, 1] == U0
    @test_throws ArgumentError gradient(fwd, fwd.zs)
    good = forward(field, U0, P, TS)
    @test_throws ArgumentError gradient(good, good.zs[:, 1:2])
    @test_throws ArgumentError gradient(good, good.zs; sensitivity = "nonsense")
    blow = forward(JuliaField((du, u, p, t) -> (du .= u .^ 2; nothing)), [1.0], [0.0], [0.0, 2.0])
    @test blow.retcode != "success"
end

include("programs.jl")
include("runs.jl")
