# Solves and gradients of fields written in Julia.

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

@testset "the first evaluation is made once" begin
    calls = Tuple{Vector{Float64}, Float64}[]
    field = JuliaField((du, u, p, t) -> (push!(calls, (copy(u), t)); lotka!(du, u, p, t)))
    for solver in ("dp5", "tsit5", "vern7", "bs3"), ts in ([0.0, 1.0], [1.0, 0.0])
        empty!(calls)
        stats = forward(field, U0, P, ts; solver, rtol = 1.0e-5, atol = 1.0e-5, keep = :nothing).stats
        @test length(calls) == stats.nfe > 20
        @test count(==((U0, ts[1])), calls) == 1
    end
    # At another time or state it is asked again.
    f = PyNode.odefunction(field, 2, Float64, false)[1]
    du, other = zeros(2), zeros(2)
    for (u, t) in ((U0, 0.0), (U0, 0.5), (2U0, 0.0))
        f(du, u, P, t)
        lotka!(other, u, P, t)
        @test du == other
    end
end

@testset "no sliver before a stop" begin
    field = JuliaField(lotka!)
    steps(stop; options...) = forward(field, U0, P, [0.0, stop]; solver = "dp5", rtol = 1.0e-6, atol = 1.0e-6, options...)
    ends = steps(3.0).sol.t
    near(r) = ends[5] + r * (ends[5] - ends[4])
    for keep in (:nothing, :states, :dense)
        @test steps(near(0.03); keep).stats.accepted == 4  # the fourth step ends there
        @test steps(near(0.5); keep).stats.accepted == 5
    end
    @test near(0.03) in steps(3.0; tstops = [near(0.03)]).sol.t[1:5]
    # A longest step is kept to, and steps of a fixed size are.
    short = steps(1.03; dt_max = 0.1)
    @test maximum(diff(short.sol.t)) <= 0.1 * (1 + 1.0e-12)
    @test steps(1.03; adaptive = false, dt = 0.1).stats.accepted == 11
    backwards = forward(field, U0, P, [0.0, -1.0]; solver = "dp5", rtol = 1.0e-6, atol = 1.0e-6)
    stop = backwards.sol.t[4] + 0.03 * (backwards.sol.t[4] - backwards.sol.t[3])
    @test forward(field, U0, P, [0.0, stop]; solver = "dp5", rtol = 1.0e-6, atol = 1.0e-6).stats.accepted == 3
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

@testset "forward sensitivities" begin
    field = JuliaField(lotka!)
    fwd = forward(field, U0, P, TS; TIGHT...)
    adjoint = gradient(fwd, cotangents(fwd.zs); TIGHT...)
    @testset "$solver" for solver in ("tsit5", "vern7")
        found = forward_sensitivities(field, U0, P, TS; solver, TIGHT...)
        @test relative(found.zs, fwd.zs) < 1.0e-8
        λ = cotangents(fwd.zs)
        @test relative(sum(found.u0[:, :, k]' * λ[:, k] for k in eachindex(TS)), adjoint.u0) < 1.0e-6
        @test relative(sum(found.p[:, :, k]' * λ[:, k] for k in eachindex(TS)), adjoint.p) < 1.0e-6
    end
    @test_throws ErrorException forward_sensitivities(field, U0, P, TS; max_steps = 3)
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
    @test_throws ArgumentError gradient(good, good.zs; solver = "fbdf")
    blow = forward(JuliaField((du, u, p, t) -> (du .= u .^ 2; nothing)), [1.0], [0.0], [0.0, 2.0])
    @test blow.retcode != "success"
end
