# Lowered fields: the golden files that Python wrote, their gradients, and files that break the rules.

using JSON

const GOLDEN = filter(endswith(".json"), readdir(joinpath(@__DIR__, "golden"); join = true))
numbers(T, xs) = T[x == "nan" ? NaN : x == "inf" ? Inf : x == "-inf" ? -Inf : x for x in xs]

"""Largest difference relative to the largest entry, where both are finite; others must agree."""
function disagreement(got, want)
    finite = isfinite.(want)
    all(isequal.(got[.!finite], want[.!finite])) || return Inf
    any(finite) || return 0.0
    return maximum(abs, got[finite] .- want[finite]) / max(maximum(abs, want[finite]), 1.0e-30)
end

@testset "golden files" begin
    @testset "$(basename(path))" for path in GOLDEN
        field, data = load_field(path), JSON.parsefile(path)
        T = eltype(field.none)
        limit = T == Float64 ? 1.0e-12 : 2.0e-6
        for case in data["cases"], (name, expected) in case["expected"]
            program = field.programs[name]
            outputs = Tuple(zeros(T, n) for (_, n) in program.outputs)
            λ = numbers(T, get(case, "lam", []))
            PyNode.run!(program, outputs, numbers(T, case["z"]), T(case["t"]), numbers(T, case["p"]), λ)
            for ((output, _), got) in zip(program.outputs, outputs)
                @test disagreement(got, numbers(T, expected[output])) < limit
            end
        end
    end
end

@testset "programs written out" begin
    @testset "$(basename(path))" for path in GOLDEN
        field, data = load_field(path), JSON.parsefile(path)
        T = eltype(field.none)
        for case in data["cases"], (name, expected) in case["expected"]
            name in ("f", "jac", "tgrad") || continue
            program = field.programs[name]
            length(PyNode.expressions(program).statements) < 1000 || continue  # a minute to compile
            f = @eval $(PyNode.written_out(program, (entries...) -> collect(T, entries)))
            got = Base.invokelatest(f, numbers(T, case["z"]), numbers(T, case["p"]), T(case["t"]))
            want = numbers(T, expected[first(program.outputs[1])])
            @test disagreement(got, want) < (T == Float64 ? 1.0e-12 : 2.0e-6)
        end
    end
end

"""The programs of an MLP with its inputs, for one of the golden files."""
function mlp(name)
    path = joinpath(@__DIR__, "golden", name)
    field, case = load_field(path), JSON.parsefile(path)["cases"][1]
    T = eltype(field.none)
    return field, numbers(T, case["z"]), numbers(T, case["p"]), numbers(T, case["lam"])
end

# A function of its own, where types are known, as they are in a solver.
function run_all(field, z, p, λ, dz, gz, gp, n)
    for _ in 1:n
        PyNode.run!(field.f, (dz,), z, 0.3, p, field.none)
        PyNode.run!(field.vjp_z, (dz,), z, 0.3, p, λ)
        PyNode.run!(field.vjp_p, (gp,), z, 0.3, p, λ)
        PyNode.run!(field.pullback, (dz, gz, gp), z, 0.3, p, λ)
    end
end

@testset "no allocation" begin
    for name in ("mlp.json", "mlp_batch.json", "mlp_float32.json", "layer_norm.json", "cnf.json")
        field, z, p, λ = mlp(name)
        arguments = (field, z, p, λ, similar(z), similar(z), similar(p))
        run_all(arguments..., 1)
        @test (@allocated run_all(arguments..., 1000)) < 1000  # less than a byte a run
    end
end

@testset "no allocation by steps" begin
    field, z, p, _ = mlp("mlp_batch.json")
    @testset "$solver" for solver in ("dp5", "tsit5")
        used(n) = begin
            solve() = forward(field, z, p, [0.0, 10.0]; solver, adaptive = false, dt = 10.0 / n, keep = :nothing)
            solve()
            @allocated solve()
        end
        @test used(500) == used(10)
    end
end

@testset "gradients of a lowered field" begin
    field, z, p, _ = mlp("mlp_batch.json")
    ts = [0.0, 0.4, 1.1]
    run(u0, q) = loss(forward(field, u0, q, ts; rtol = 1.0e-12, atol = 1.0e-13, solver = "vern7").zs)
    dz = differences(u -> run(u, p), z)
    some = 1:7:length(p)
    dp = differences(x -> run(z, (q = copy(p); q[some] = x; q)), p[some])
    for sensitivity in sensitivities(), solver in ("tsit5", "vern7")
        found = forward(field, z, p, ts; solver, TIGHT...)
        g = gradient(found, cotangents(found.zs); sensitivity, TIGHT...)
        @test relative(g.u0, dz) < 1.0e-6
        @test relative(g.p[some], dp) < 1.0e-6
    end
end

@testset "a stiff lowered field" begin
    field, z, p, _ = mlp("robertson.json")
    n = field.width
    ts = [0.0, 0.3, 4.0]
    for solver in ("rodas5p", "fbdf", "kencarp4")
        fwd = forward(field, z, p, ts; solver, rtol = 1.0e-8, atol = 1.0e-12)
        @test fwd.retcode == "success"
        @test fwd.stats.jacobians > 0
        g = gradient(fwd, cotangents(fwd.zs); sensitivity = "gauss", rtol = 1.0e-8, atol = 1.0e-12)
        @test all(isfinite, g.p)
        for sensitivity in ("interpolating", "backsolve")
            @test_throws "take gauss or quadrature" gradient(fwd, cotangents(fwd.zs); sensitivity)
        end
    end
end

"""The text of a golden file with one thing in it changed."""
function changed(change!, name = "mlp.json")
    data = JSON.parsefile(joinpath(@__DIR__, "golden", name); dicttype = Dict{String, Any})
    change!(data)
    return JSON.json(data)
end
code(data) = data["programs"]["f"]["code"]

@testset "files that break the rules" begin
    broken = [
        "version" => d -> d["version"] = 2,
        "format" => d -> d["format"] = "something",
        "dtype" => d -> d["dtype"] = "float16",
        "a name that is none" => d -> code(d)[1][1] = "system",
        "a kind that is none" => d -> code(d)[2][2] = "exec",
        "a read beyond the parameters" => d -> code(d)[1][12] = 10^6,
        "a negative offset" => d -> code(d)[1][8] = -1,
        "a slot that is none" => d -> code(d)[1][7] = 9,
        "a write to the parameters" => d -> code(d)[1][5] = 4,
        "a write to the constants" => d -> code(d)[1][5] = 0,
        "a huge count" => d -> code(d)[1][2] = 2^62,
        "no count" => d -> code(d)[1][2] = 0,
        "half a number" => d -> code(d)[1][2] = 1.5,
        "too few numbers" => d -> pop!(code(d)[1]),
        "too many" => d -> push!(code(d)[1], 1),
        "no outputs written" => d -> empty!(code(d)),
        "less memory" => d -> d["programs"]["f"]["work"] = 1,
        "more memory than there is" => d -> d["programs"]["f"]["work"] = 2^60,
        "constants that are no numbers" => d -> d["programs"]["f"]["constants"] = ["rm"],
        "no programs" => d -> delete!(d, "programs"),
    ]
    @testset "$what" for (what, change!) in broken
        @test_throws PyNode.ProgramError PyNode.parse_field(changed(change!))
    end
    @test_throws PyNode.ProgramError PyNode.parse_field("not json")
    @test_throws PyNode.ProgramError PyNode.parse_field("[1, 2]")
    @test_throws PyNode.ProgramError load_field("/nonexistent/field.json")
    @test PyNode.parse_field(changed(d -> nothing)) isa ProgramField
end

@testset "matrix products, $T" for T in (Float32, Float64)
    # Row-major matrices, some with a row length beyond their columns, and every way to be transposed.
    matrix(rows, columns, gap) = reshape(T.(randn(rows * (columns + gap))), columns + gap, rows)
    for m in (1, 3, 6, 19), n in (1, 2, 3, 4, 5, 9, 17), k in (1, 2, 3, 4, 5, 8, 11, 50), ta in (false, true), tb in (false, true)
        for (add, ci, cj) in ((false, 0, 0), (true, 0, 1), (true, n, 1), (true, 1, 0)), beyond in (0, 2)
            A, B = ta ? matrix(k, m, beyond) : matrix(m, k, beyond), tb ? matrix(n, k, beyond) : matrix(k, n, beyond)
            a = ta ? A[1:m, :] : permutedims(A[1:k, :])
            b = tb ? B[1:k, :] : permutedims(B[1:n, :])
            out, c = fill(T(NaN), n + beyond, m), T.(randn(m * n + 1))
            GC.@preserve A B out c PyNode.mm!(
                m, n, k, pointer(out), n + beyond, pointer(A), ta, size(A, 1), pointer(B), tb, size(B, 1), add, pointer(c), ci, cj)
            addend = [add ? c[1 + i * ci + j * cj] : zero(T) for i in 0:(m - 1), j in 0:(n - 1)]
            scale = abs.(a) * abs.(b) + abs.(addend)
            @test all(abs.(permutedims(out[1:n, :]) - (a * b + addend)) .<= 50 * eps(T) * scale)
            @test all(isnan, out[(n + 1):end, :])
        end
    end
end

@testset "a product added to where it goes, $T" for T in (Float32, Float64)
    for m in (1, 6), n in (1, 2, 3, 9), k in (2, 3, 4, 8, 50), tb in (false, true)
        a, b, c = T.(randn(k, m)), T.(randn(tb ? (k, n) : (n, k))), T.(randn(n, m))
        out = copy(c)
        GC.@preserve a b out PyNode.mm!(
            m, n, k, pointer(out), n, pointer(a), false, k, pointer(b), tb, size(b, 1), true, pointer(out), n, 1)
        @test out ≈ c + (tb ? transpose(b) : b) * a
    end
end

@testset "BLAS adds to what is there, or not, $T" for T in (Float32, Float64)
    m, n, k = 20, 30, 40  # more than the package's own loops take
    a, b, c = T.(randn(k, m)), T.(randn(n, k)), T.(randn(n * m))
    for (add, ci, cj) in ((false, 0, 0), (true, 0, 1), (true, n, 1), (true, 1, 0))
        out = fill(T(NaN), n, m)
        GC.@preserve a b c out PyNode.mm!(m, n, k, pointer(out), n, pointer(a), false, k, pointer(b), false, n, add, pointer(c), ci, cj)
        @test out ≈ b * a .+ [add ? c[1 + i * ci + j * cj] : zero(T) for j in 0:(n - 1), i in 0:(m - 1)]
    end
end

@testset "elementwise, every way to read an operand, $T" for T in (Float32, Float64)
    shape, so = (2, 1, 3, 5), (17, 0, 5, 1)
    x, c = T.(randn(40)), T.(randn(40))
    value(a, s, i) = a[1 + sum(s .* i)]
    for sa in (0, 1, 2), sb in (0, 1), sc in (0, 1, -1), place in (1, 2)
        strides = ((3, 0, 2, sa), (0, 0, 1, sb), (5, 0, 1, sc))
        out = fill(T(NaN), 50)
        here = place == 1 ? so : (24, 0, 7, 2)  # contiguous rows, or every other entry
        GC.@preserve x c out PyNode.ternary_nd!(
            1, shape, pointer(out), here, pointer(x), strides[1], pointer(c), strides[2], pointer(x, 6), strides[3])
        for i in Iterators.product((0:(n - 1) for n in shape)...)
            want = value(x, strides[1], i) * value(c, strides[2], i) + x[6 + sum(strides[3] .* i)]
            @test out[1 + sum(here .* i)] ≈ want atol = 10eps(T)
        end
        here === so || @test isnan(out[2])
    end
    for sa in (0, 1), sb in (0, 1), sc in (0, 1)
        out = zeros(T, 11)
        GC.@preserve x c out PyNode.ternary!(1, 11, pointer(out), pointer(x), sa, pointer(c), sb, pointer(x, 5), sc)
        @test out ≈ [x[1 + sa * i] * c[1 + sb * i] + x[5 + sc * i] for i in 0:10] atol = 10eps(T)
    end
end

@testset "sums over rows, $T" for T in (Float32, Float64)
    for rows in (1, 3, 4, 11), inner in (2, 3, 4, 5, 33)
        a, out = T.(randn(inner + 1, rows)), fill(T(NaN), inner + 1)
        GC.@preserve a out PyNode.reduce!(0, 1, rows, inner, pointer(out), 0, 1, pointer(a), 0, inner + 1, 1)
        @test out[1:inner] ≈ vec(sum(a[1:inner, :]; dims = 2)) atol = 100 * eps(T)
        @test isnan(out[end])
    end
end

@testset "fast functions, Float$(8sizeof(T))" for T in (Float64, Float32)
    xs = T.(vcat(range(-30, 30, 4001), exp10.(range(-12, 1, 500)), -exp10.(range(-12, 1, 500))))
    ulps(f, exact) = maximum(xs) do x
        want = exact(big(x))
        Float64(abs(big(f(x)) - want) / eps(T(abs(want))))
    end
    @test ulps(PyNode.fast_tanh, tanh) < 3
    @test ulps(PyNode.fast_exp, exp) < 3
    @test ulps(PyNode.fast_sigmoid, x -> 1 / (1 + exp(-x))) < 3
    @test isequal(PyNode.fast_tanh(T(NaN)), T(NaN)) && isequal(PyNode.fast_exp(T(NaN)), T(NaN))
    @test PyNode.fast_tanh(T(Inf)) == 1 && PyNode.fast_tanh(T(-Inf)) == -1
    @test isequal(PyNode.fast_tanh(-zero(T)), -zero(T))
    @test PyNode.fast_exp(T(1000)) == Inf && PyNode.fast_exp(T(-1000)) == 0
end
