# The command line on an exported folder, without Python.

using NPZ, TOML

function exported(folder; name = "mlp_batch.json", more...)
    mkpath(folder)
    field, z, p, _ = mlp(name)
    cp(joinpath(@__DIR__, "golden", name), joinpath(folder, "field.json"))
    ts = [0.0, 0.4, 1.1]
    npzwrite(joinpath(folder, "data.npz"), Dict("z0" => z, "p" => p, "ts" => ts, (String(k) => v for (k, v) in more)...))
    write(joinpath(folder, "problem.toml"), "format = \"pynode-run\"\nversion = 1\nsolver = \"tsit5\"\nsensitivity = \"gauss\"\nrtol = 1e-8\natol = 1e-10\n")
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
        @test length(npzread(joinpath(folder, "gradient.npz"))["p"]) == length(p)
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
