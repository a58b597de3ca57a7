# The command line on an exported folder, without Python.

using Distributed, NPZ, TOML

const EXPORTED_OPTIONS = """solver = "tsit5"
rtol = 1e-8
atol = 1e-10
"""

function exported(folder; name = "mlp_batch.json", options = EXPORTED_OPTIONS, sensitivity = "gauss", more...)
    mkpath(folder)
    field, z, p, _ = mlp(name)
    cp(joinpath(@__DIR__, "golden", name), joinpath(folder, "field.json"); force = true)
    ts = [0.0, 0.4, 1.1]
    npzwrite(joinpath(folder, "data.npz"), Dict("z0" => z, "p" => p, "ts" => ts, (String(k) => v for (k, v) in more)...))
    write(joinpath(folder, "problem.toml"), "format = \"pynode-run\"\nversion = 1\nsensitivity = \"$sensitivity\"\n" * options)
    return field, z, p, ts
end

quietly(arguments...) = redirect_stderr(() -> redirect_stdout(() -> PyNode.Run.main(collect(arguments)), devnull), devnull)

@testset "command line" begin
    mktempdir() do root
        folder = joinpath(root, "run")
        field, z, p, ts = exported(folder; targets = zeros(3, 6), z0s = randn(5, 6))
        n = length(z)
        field, z, p, ts = (rm(folder; recursive = true); exported(folder; targets = zeros(3, n), z0s = 0.1 .* randn(5, n)))
        @test quietly("solve", folder) == 0
        want = forward(field, z, p, ts; rtol = 1.0e-8, atol = 1.0e-10).zs
        @test relative(permutedims(npzread(joinpath(folder, "solution.npz"))["zs"]), want) < 1.0e-7
        @test quietly("gradient", folder) == 0
        by_adjoint = npzread(joinpath(folder, "gradient.npz"))
        @test length(by_adjoint["p"]) == length(p)
        through_steps = joinpath(root, "discrete")
        exported(through_steps; sensitivity = "discrete")
        @test quietly("gradient", through_steps) == 0
        found = npzread(joinpath(through_steps, "gradient.npz"))
        @test all(name -> relative(found[name], by_adjoint[name]) < 1.0e-5, ("z0", "p", "t"))
        @test quietly("ensemble", folder) == 0
        members = npzread(joinpath(folder, "ensemble.npz"))["zs"]
        @test size(members) == (5, 3, n)
        first_one = forward(field, npzread(joinpath(folder, "data.npz"))["z0s"][1, :], p, ts; rtol = 1.0e-8, atol = 1.0e-10).zs
        @test relative(permutedims(members[1, :, :]), first_one) < 1.0e-7
        @test quietly("train", folder, "--epochs", "5", "--lr", "0.05") == 0
        five = npzread(joinpath(folder, "parameters.npz"))
        @test five["loss"] < sum(abs2, want) / length(want)
        @test quietly("train", folder, "--epochs", "9") == 2  # there is a checkpoint, and no --resume
        @test quietly("train", folder, "--epochs", "9", "--lr", "0.05", "--resume") == 0
        resumed = npzread(joinpath(folder, "checkpoint.npz"))["p"]
        rm(joinpath(folder, "checkpoint.npz"))
        @test quietly("train", folder, "--epochs", "9", "--lr", "0.05") == 0
        @test npzread(joinpath(folder, "checkpoint.npz"))["p"] == resumed  # bit for bit
        @test quietly("solve", joinpath(root, "nowhere")) == 2
        @test quietly("nonsense", folder) == 2
        @test quietly("train", folder, "--epochs", "none") == 2
        write(joinpath(folder, "problem.toml"), "format = ")
        @test quietly("solve", folder) == 2
    end
end

"""The states of the ensemble in `folder`, by the command."""
function members(folder)
    rm(joinpath(folder, "ensemble.npz"); force = true)
    @test quietly("ensemble", folder) == 0
    return npzread(joinpath(folder, "ensemble.npz"))["zs"]
end

@testset "ensembles" begin
    mktempdir() do folder
        field, z, p, ts = exported(folder)
        z0s = 0.1 .* randn(7, length(z))
        @testset "options are those of a solve: $solver" for (solver, options) in (
                ("euler", "adaptive = false\ndt = 0.01\n"), ("tsit5", "dt_max = 0.01\n"), ("kvaerno5", ""),
            )
            exported(folder; z0s, options = "solver = \"$solver\"\n" * options)
            zs = members(folder)
            o = PyNode.Run.solving(PyNode.Run.read_folder(folder))
            # The same steps; outputs are read off them by other formulas.
            @test permutedims(zs[3, :, :]) ≈ forward(field, z0s[3, :], p, ts; o..., keep = :nothing).zs rtol = 1.0e-12
        end
        @testset "by processes as in this one" begin
            exported(folder; z0s, ps = [(0.5 + i / 10) * x for i in 1:7, x in p])
            here = members(folder)
            processes = addprocs(2)
            try
                @test members(folder) == here
                @test all(id -> remotecall_fetch(() -> PyNode.CALLS[], id) > 0, processes)  # both have worked
            finally
                rmprocs(processes)
            end
        end
    end
end
