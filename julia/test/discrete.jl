# Gradients through the solver's own steps.

const EXPLICIT = [name for name in solvers() if !PyNode.SOLVERS[name].stiff]

"""Derivatives by differences of fourth order: of smooth functions, as solves by fixed steps are."""
function fine_differences(f, x; h = 1.0e-4)
    return map(eachindex(x)) do i
        e = zeros(length(x)); e[i] = h * max(1, abs(x[i]))
        (8 * (f(x + e) - f(x - e)) - (f(x + 2e) - f(x - 2e))) / (12 * e[i])
    end
end

@testset "methods as their steps show them, $T" for T in (Float64, Float32)
    limit = 1000 * eps(T)
    @testset "$solver" for solver in EXPLICIT
        fixed = !PyNode.SOLVERS[solver].adaptive
        method = PyNode.method_of(solver, T, fixed)
        @test maximum(abs, sum(method.A; dims = 2) - method.c) < limit
        @test abs(sum(method.b) - 1) < limit
        # One step of the solver's, made once more by hand, and its dense output.
        field, u, p, h = JuliaField(lotka!), T[1, 1], T.(P), 0.1
        step = (; solver, dt = h, adaptive = false)
        fwd = forward(field, u, p, [0.0, h]; step...)
        k = [zeros(T, 2) for _ in method.b]
        for i in [method.first; method.full]
            lotka!(k[i], u + T(h) * sum(method.A[i, j] * k[j] for j in eachindex(k)), p, method.c[i] * h)
        end
        at(w) = u + T(h) * sum(w[i] * k[i] for i in eachindex(k))
        @test relative(at(method.b), fwd.zs[:, end]) < limit
        w = zeros(T, length(k))
        for θ in (0.0, 0.31, 0.5, 0.97, 1.0)
            @test relative(at(PyNode.weights!(w, method, θ)), fwd.sol(θ * h)) < limit
        end
    end
end

@testset "discrete gradients, $solver" for solver in EXPLICIT
    field = JuliaField(lotka!)
    for ts in (TS, reverse(TS)), fixed in (true, false)
        fixed || PyNode.SOLVERS[solver].adaptive || continue
        # No time but the first two falls on the end of a step. Steps that are chosen are held as they were.
        options = fixed ? (; solver, adaptive = false, dt = 0.07, tstops = [0.7]) : (; solver, rtol = 1.0e-9, atol = 1.0e-10, max_steps = 10^6)
        run(u0, p) = loss(forward(field, u0, p, ts; options..., keep = :nothing).zs)
        fwd = forward(field, U0, P, ts; options..., keep = :states)
        @test_throws "keep = :dense" gradient(fwd, cotangents(fwd.zs); sensitivity = "gauss")
        g = gradient(fwd, cotangents(fwd.zs); sensitivity = "discrete")
        limit = fixed ? 1.0e-9 : 1.0e-5
        @test relative(g.u0, fine_differences(u -> run(u, P), U0)) < limit
        @test relative(g.p, fine_differences(p -> run(U0, p), P)) < limit
    end
end

@testset "each part of the state at times of its own" begin
    field, z, p, _ = mlp("mlp_batch.json")
    width, reading = field.width, PyNode.Reads(0.0, 1.0, [0.0, 0.0, 0.25, 0.3, 0.3, 0.7, 1.0], [0, 4, 2, 6, 0, 6, 2], 2, false)
    whole = forward(field, z, p, unique(reading.times); TIGHT...)
    for solver in ("tsit5", "vern7"), sensitivity in ("discrete", "gauss")
        fwd = forward(field, z, p, reading; solver, TIGHT...)
        place(k) = whole.zs[PyNode.places(reading, k), findfirst(==(reading.times[k]), whole.reads.times)]
        @test relative(fwd.zs, reduce(hcat, place.(eachindex(reading.times)))) < 1.0e-7
        seeds = cos.(fwd.zs)
        dense = zeros(size(whole.zs))
        for k in eachindex(reading.times)
            dense[PyNode.places(reading, k), findfirst(==(reading.times[k]), whole.reads.times)] += seeds[:, k]
        end
        got, want = gradient(fwd, seeds; sensitivity, times = false, TIGHT...), gradient(whole, dense; sensitivity = "gauss", TIGHT...)
        @test relative(got.u0, want.u0) < 1.0e-6
        @test relative(got.p, want.p) < 1.0e-6
        @test_throws "whole states" gradient(fwd, seeds; sensitivity, TIGHT...)
    end
end

@testset "pullbacks in two parts" begin
    for name in ("mlp_batch.json", "layer_norm.json", "cnf.json", "attention.json", "robertson.json")
        field, z, p, λ = mlp(name)
        e, other = PyNode.evaluations!(field, 2, p, length(z))
        @test e isa PyNode.ProgramEvaluation
        plain = only(PyNode.plain_evaluations(field, 1, p, length(z)))
        foreach(x -> copyto!(x.u, z), (e, plain))
        copyto!(other.u, -z)
        foreach(x -> PyNode.linearize!(x, p, 0.3), (e, other, plain))
        @test e.k == plain.k
        PyNode.pull!(other, -λ, p)  # which must not touch the first one
        foreach(x -> PyNode.pull!(x, λ, p), (e, plain))
        @test relative(e.gz, plain.gz) < 1.0e-12
        @test relative(e.gp, plain.gp) < 1.0e-12
    end
    moved = changed() do data
        code = data["programs"]["pullback"]["code"]
        push!(code, popat!(code, findfirst(x -> x[1] == "mm" && x[5] == 6, code)))
    end
    @test_throws "after it has read" PyNode.parse_field(moved)
end

@testset "no allocation backwards" begin
    field, z, p, _ = mlp("mlp_batch.json")
    used(n) = begin
        fwd = forward(field, z, p, [0.0, 10.0]; solver = "dp5", adaptive = false, dt = 10.0 / n)
        back() = gradient(fwd, fwd.zs; sensitivity = "discrete", times = false)
        back()
        @allocated back()
    end
    @test used(100) == used(10)
end

@testset "what discrete is not for" begin
    fwd = forward(JuliaField(robertson!), [1.0, 0, 0], [0.04, 3.0e7, 1.0e4], [0.0, 1.0]; solver = "rodas5p")
    @test_throws "for explicit solvers" gradient(fwd, fwd.zs; sensitivity = "discrete")
    bare = forward(JuliaField(lotka!), U0, P, TS; keep = :nothing)
    @test_throws "keep = :dense" gradient(bare, bare.zs; sensitivity = "discrete")
end
