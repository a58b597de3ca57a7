# Fields on a device: on KernelAbstractions' backend for CPUs, against the interpreter and the same solves. Another
# backend is tested by `device_tests(backend, move)`, `move` bringing vectors there.

using KernelAbstractions: CPU, synchronize

"""A solver that stands for each way of dense output, and one of fixed steps."""
const ON_DEVICE = ("tsit5", "vern7", "bs3", "euler")

function device_tests(backend, move)
    @testset "golden files" begin
        @testset "$(basename(path))" for path in GOLDEN
            plain, data = load_field(path), JSON.parsefile(path)
            field, T = DeviceField(plain, backend), eltype(plain.none)
            limit = T == Float64 ? 1.0e-12 : 2.0e-6
            for case in data["cases"], (name, expected) in case["expected"]
                program = field.programs[name]
                outputs = Tuple(move(fill(T(NaN), n)) for (_, n) in program.program.outputs)
                z, p, λ = (move(numbers(T, get(case, key, []))) for key in ("z", "p", "lam"))
                PyNode.run!(program, outputs, z, T(case["t"]), p, λ)
                synchronize(backend)
                for ((output, _), got) in zip(program.program.outputs, outputs)
                    @test disagreement(Array(got), numbers(T, expected[output])) < limit
                end
            end
        end
    end

    @testset "pullbacks in two parts" begin
        field, z, p, λ = mlp("attention.json")
        e, other = PyNode.evaluations!(DeviceField(field, backend), 2, move(p), length(z))
        plain = only(PyNode.plain_evaluations(field, 1, p, length(z)))
        copyto!(e.u, z), copyto!(other.u, -z), copyto!(plain.u, z)
        foreach(x -> PyNode.linearize!(x, x === plain ? p : move(p), 0.3), (e, other, plain))
        foreach(x -> PyNode.pull!(x, x === plain ? λ : move(λ), x === plain ? p : move(p)), (other, e, plain))
        @test relative(Array(e.k), plain.k) < 1.0e-12
        @test relative(Array(e.gz), plain.gz) < 1.0e-12
        @test relative(Array(e.gp), plain.gp) < 1.0e-12
    end

    @testset "solves, $name" for name in ("mlp_batch.json", "time_concatenated.json")
        plain, z, p, _ = mlp(name)
        field, ts = DeviceField(plain, backend), [0.0, 0.3, 0.7, 1.0]
        @testset "$solver" for solver in ON_DEVICE
            steps = PyNode.SOLVERS[solver].adaptive ? (; rtol = 1.0e-8, atol = 1.0e-10) : (; dt = 0.02)
            back = (; steps..., adaptive = PyNode.SOLVERS[solver].adaptive)
            want = forward(plain, z, p, ts; solver, steps...)
            got = forward(field, move(z), move(p), ts; solver, steps...)
            @test got.stats == want.stats
            @test relative(Array(got.zs), want.zs) < 1.0e-10
            @testset "$sensitivity" for sensitivity in sensitivities()
                options = sensitivity == "discrete" ? (;) : back
                a = gradient(want, cos.(want.zs); sensitivity, options...)
                b = gradient(got, move(cos.(want.zs)); sensitivity, options...)
                @test relative(Array(b.u0), a.u0) < 1.0e-8
                @test relative(Array(b.p), a.p) < 1.0e-8
                @test relative(b.t, a.t) < 1.0e-8
            end
        end
    end

    @testset "each part of the state at times of its own" begin
        plain, z, p, _ = mlp("mlp_batch.json")
        reading = PyNode.Reads(0.0, 1.0, [0.0, 0.0, 0.25, 0.3, 0.3, 0.7, 1.0], [0, 4, 2, 6, 0, 6, 2], 2, false)
        want = forward(plain, z, p, reading; TIGHT...)
        for keep in (:dense, :states)
            got = forward(DeviceField(plain, backend), move(z), move(p), reading; keep, TIGHT...)
            @test relative(Array(got.zs), want.zs) < 1.0e-10
            a, b = (gradient(f, seeds; sensitivity = "discrete", times = false) for (f, seeds) in ((want, want.zs), (got, got.zs)))
            @test relative(Array(b.u0), a.u0) < 1.0e-8
            @test relative(Array(b.p), a.p) < 1.0e-8
        end
    end

    @testset "what a device does not do" begin
        plain, z, p, _ = mlp("mlp.json")
        field = DeviceField(plain, backend)
        @test_throws "on the CPU only" forward(field, move(z), move(p), [0.0, 1.0]; solver = "rodas5p")
        fwd = forward(field, move(z), move(p), [0.0, 1.0])
        @test_throws "on the CPU only" gradient(fwd, fwd.zs; solver = "rodas5p")
    end
end

@testset "fields on a device" begin
    device_tests(CPU(), copy)
    @testset "bad input" begin
        field, z, p, _ = mlp("mlp.json")
        there = DeviceField(field, CPU())
        @test_throws "memory is of the type" forward(there, Float32.(z), p, [0.0, 1.0])
        @test_throws "KernelAbstractions" DeviceField(field, :somewhere)
        @test_throws "no place" PyNode.backend_of("nowhere:0")
    end
end

@testset "long reductions, scattered sums" begin
    # Over the first dimension of (n, inner) in parts, and the sums of n terms at indices that repeat.
    n, inner, T = 1000, 3, Float64
    sizes = (; z = n * inner, t = 1, p = 0, lam = 0)
    index = [mod(7i * i, 40) for i in 0:(n - 1)]
    code(kind) = [9, kind, 1, n, inner, 6, 0, inner, 1, 2, 0, n * inner, inner, 1]
    z = sin.(1.0:(n * inner))
    for (kind, f) in ((0, sum), (1, x -> sum(x) / length(x)), (2, maximum), (3, minimum))
        program = PyNode.check(PyNode.Program(code(kind), T[], Int[], 0, sizes, ["out" => inner]))
        out = zeros(inner)
        PyNode.run!(PyNode.DeviceProgram(program, CPU()), (out,), z, 0.0, T[], T[])
        @test out ≈ vec(mapslices(f, reshape(z, inner, n); dims = 2)) rtol = 1.0e-12
    end
    fill40 = [2, 0, 1, 1, 1, 40, 6, 0, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0]
    program = PyNode.check(PyNode.Program([fill40; [12, 0, n, 6, 0, 2, 0, 0]], T[], index, 0, sizes, ["out" => 40]))
    there, here = zeros(40), zeros(40)
    PyNode.run!(PyNode.DeviceProgram(program, CPU()), (there,), z, 0.25, T[], T[])
    PyNode.run!(program, (here,), z, 0.25, T[], T[])
    @test there == here  # each sum in the order of its terms
end
