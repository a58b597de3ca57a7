"""
Runs of an exported folder without Python: see docs/julia.md. A folder holds `problem.toml` (what to
do), `field.json` (the lowered field) and `data.npz` (z0, ts, p, and what a command needs beside them).
Nothing in it is code, and no file name is taken from it.
"""
module Run

using Distributed: Distributed, nworkers, nprocs, workers, remotecall_eval
using LinearAlgebra: norm
using NPZ: npzread, npzwrite
using Printf: @sprintf
using SciMLBase: EnsembleDistributed, EnsembleProblem, EnsembleSerial, EnsembleThreads, ODEProblem, remake, solve
using TOML: TOML

using ..PyNode: PyNode, Forward, ProgramError, ProgramField, forward, gradient, load_field, odefunction, refuse,
    solver_info

const USAGE = """
julia --project=. [-t auto] [-p PROCESSES] julia/bin/pynode.jl COMMAND FOLDER [OPTIONS]

  solve FOLDER                 states at the times of the export       -> solution.npz
  gradient FOLDER              of sum(weights · states)                -> gradient.npz
  train FOLDER                 fit the parameters to the targets       -> parameters.npz, checkpoint.npz
      --epochs N (100)  --lr X (0.01)  --checkpoint-every N (10)  --resume
  ensemble FOLDER              all of the exported z0s, on threads, or on processes with -p -> ensemble.npz
"""

"""What a folder holds."""
struct Exported
    folder::String
    field::ProgramField
    options::Dict{String, Any}
    data::Dict{String, Any}
end

function read_folder(folder)
    isdir(folder) || refuse("there is no folder ", folder)
    problem = joinpath(folder, "problem.toml")
    isfile(problem) || refuse(folder, " has no problem.toml: was it written by NeuralODE.export?")
    options = try
        TOML.parsefile(problem)
    catch error
        refuse(problem, " is no TOML: ", sprint(showerror, error))
    end
    get(options, "format", "") == "pynode-run" && get(options, "version", 0) == 1 ||
        refuse(problem, " is not version 1 of a pynode-run")
    data = try
        Dict{String, Any}(npzread(joinpath(folder, "data.npz")))
    catch error
        refuse("cannot read ", joinpath(folder, "data.npz"), ": ", first(sprint(showerror, error), 200))
    end
    field = load_field(joinpath(folder, "field.json"))
    n, p = field.rows * field.width, field.f.sizes[5]
    p == 0 && get!(data, "p", number_type(field)[])
    for (name, size) in (("z0", n), ("p", p))
        haskey(data, name) && length(data[name]) == size || refuse("data.npz has no ", name, " of ", size, " numbers")
    end
    haskey(data, "ts") && ndims(data["ts"]) == 1 || refuse("data.npz has no vector ts")
    return Exported(folder, field, options, data)
end

"""Solver options of an export, as keywords of `forward`."""
function solving(run::Exported)
    o = run.options
    return (;
        solver = String(get(o, "solver", "tsit5")), rtol = Float64(get(o, "rtol", 1.0e-6)),
        atol = Float64(get(o, "atol", 1.0e-8)), max_steps = Int(get(o, "max_steps", 10_000)),
        dt = haskey(o, "dt") ? Float64(o["dt"]) : nothing, dt_max = haskey(o, "dt_max") ? Float64(o["dt_max"]) : nothing,
        adaptive = haskey(o, "adaptive") ? Bool(o["adaptive"]) : nothing,
        tstops = Float64.(get(o, "tstops", Float64[])), controller = String(get(o, "controller", "own")),
    )
end

sensitivity(run::Exported) = String(get(run.options, "sensitivity", "gauss"))
for_gradient(run) = sensitivity(run) == "discrete" ? :states : :dense
number_type(::ProgramField{T}) where {T} = T

function solved(run::Exported, p; keep)
    T = number_type(run.field)
    found = forward(run.field, Vector{T}(vec(run.data["z0"])), Vector{T}(p), run.data["ts"]; solving(run)..., keep)
    found.retcode == "success" || refuse_solve(found)
    return found
end

refuse_solve(found) = error("the solve ended at t=$(found.t) with $(found.retcode)")

# -- commands ---------------------------------------------------------------------------------

function solve_command(run::Exported, _)
    found = solved(run, vec(run.data["p"]); keep = :nothing)
    npzwrite(joinpath(run.folder, "solution.npz"), Dict("ts" => found.reads.times, "zs" => permutedims(found.zs), counts(found)...))
    println("solved: ", found.stats)
end

counts(found) = ("nfe" => found.stats.nfe, "accepted" => found.stats.accepted, "rejected" => found.stats.rejected)

function gradient_command(run::Exported, _)
    found = solved(run, vec(run.data["p"]); keep = for_gradient(run))
    weights = haskey(run.data, "weights") ? permutedims(run.data["weights"]) : ones(eltype(found.zs), size(found.zs))
    size(weights) == size(found.zs) || refuse("weights are not like the states")
    o = solving(run)
    g = gradient(found, weights; sensitivity = sensitivity(run), rtol = o.rtol, atol = o.atol, controller = o.controller)
    npzwrite(joinpath(run.folder, "gradient.npz"), Dict("z0" => g.u0, "p" => g.p, "t" => g.t, counts(found)...))
    println("gradient: |dL/dz0| = ", norm(g.u0), ", |dL/dp| = ", norm(g.p))
end

"""Mean squared error over the targets that are there (not NaN), and its derivative."""
function mean_squared(zs, targets)
    known = .!isnan.(targets)
    count = max(sum(known), 1)
    difference = ifelse.(known, zs .- targets, zero(eltype(zs)))
    return sum(abs2, difference) / count, (2 / count) .* difference
end

function train_command(run::Exported, options)
    haskey(run.data, "targets") || refuse("data.npz has no targets: export with targets=...")
    isempty(run.data["p"]) && refuse("the field has no parameters to train")
    targets = permutedims(run.data["targets"])
    checkpoint = joinpath(run.folder, "checkpoint.npz")
    T = number_type(run.field)
    state = start_of_training(run, checkpoint, options.resume, T)
    o = solving(run)
    started = time()
    for epoch in (state.epoch + 1):options.epochs
        found = solved(run, state.p; keep = for_gradient(run))
        loss, seeds = mean_squared(found.zs, targets)
        g = gradient(found, Matrix{T}(seeds); sensitivity = sensitivity(run), rtol = o.rtol, atol = o.atol, controller = o.controller, times = false)
        isfinite(loss) && all(isfinite, g.p) || error("the loss or its gradient is not finite in epoch $epoch; the last checkpoint is whole")
        if loss < state.best_loss
            state.best_loss, state.best = loss, copy(state.p)
        end
        adam!(state, g.p, options.lr)
        state.epoch = epoch
        progress(epoch, options.epochs, loss, time() - started)
        epoch % options.every == 0 && save(checkpoint, state)
    end
    println()
    last, _ = mean_squared(solved(run, state.p; keep = :nothing).zs, targets)
    last < state.best_loss && (state.best_loss = last; state.best = copy(state.p))
    save(checkpoint, state)
    npzwrite(joinpath(run.folder, "parameters.npz"), Dict("p" => state.best, "loss" => state.best_loss, "epochs" => state.epoch))
    println("best loss ", state.best_loss, " of ", state.epoch, " epochs")
end

mutable struct Training{T}
    p::Vector{T}
    m::Vector{T}
    v::Vector{T}
    epoch::Int
    best::Vector{T}
    best_loss::Float64
end

function start_of_training(run, checkpoint, resume, ::Type{T}) where {T}
    p = Vector{T}(vec(run.data["p"]))
    if !isfile(checkpoint)
        resume && refuse("there is no ", checkpoint, " to resume")
        return Training{T}(p, zero(p), zero(p), 0, copy(p), Inf)
    end
    resume || refuse(checkpoint, " holds a checkpoint: pass --resume to go on, or remove it first")
    c = npzread(checkpoint)
    length(c["p"]) == length(p) || refuse(checkpoint, " is of another field")
    return Training{T}(c["p"], c["m"], c["v"], c["epoch"], c["best"], c["best_loss"])
end

"""Kingma & Ba 2015, Adam, with its default moments."""
function adam!(state::Training{T}, g, lr) where {T}
    k = state.epoch + 1
    @. state.m = T(0.9) * state.m + T(0.1) * g
    @. state.v = T(0.999) * state.v + T(0.001) * g^2
    @. state.p -= T(lr) * (state.m / (1 - T(0.9)^k)) / (sqrt(state.v / (1 - T(0.999)^k)) + T(1.0e-8))
end

"""Written whole or not at all."""
function save(path, state)
    part = path * ".part.npz"
    npzwrite(part, Dict("p" => state.p, "m" => state.m, "v" => state.v, "epoch" => state.epoch, "best" => state.best, "best_loss" => state.best_loss))
    mv(part, path; force = true)
end

function progress(epoch, epochs, loss, seconds)
    line = @sprintf("epoch %d of %d, loss %.4g, %.1f s", epoch, epochs, loss, seconds)
    isa(stdout, Base.TTY) ? print("\r", line) : (epoch % max(epochs ÷ 10, 1) == 0 && println(line))
    return flush(stdout)
end

"""
All trajectories, by DifferentialEquations' own ensembles: `EnsembleDistributed` where there are
worker processes, else `EnsembleThreads`.
"""
function ensemble_command(run::Exported, _)
    haskey(run.data, "z0s") || refuse("data.npz has no z0s: export with z0s=...")
    T = number_type(run.field)
    z0s = Matrix{T}(permutedims(run.data["z0s"]))
    p = Vector{T}(vec(run.data["p"]))
    ps = haskey(run.data, "ps") ? Matrix{T}(permutedims(run.data["ps"])) : nothing
    size(z0s, 1) == length(run.data["z0"]) || refuse("z0s have ", size(z0s, 1), " entries each, z0 ", length(run.data["z0"]))
    found = trajectories(run, z0s, p, ps)
    zs = stack(first.(found))  # (n, T, M)
    npzwrite(joinpath(run.folder, "ensemble.npz"), Dict("ts" => Float64.(run.data["ts"]), "zs" => permutedims(zs, (3, 2, 1))))
    failed = findall(x -> last(x) != "success", found)
    println(length(found), " trajectories on ", nprocs() > 1 ? "$(nworkers()) processes" : "$(Threads.nthreads()) threads", ", ", length(failed), " failed")
    isempty(failed) || println("failed: ", first(failed .- 1, 10))
end

function trajectories(run, z0s, p, ps)
    o, ts = solving(run), PyNode.check_times(run.data["ts"])
    info = solver_info(o.solver)
    stops = info.lands ? union(ts[2:end], o.tstops) : o.tstops
    f, _ = odefunction(run.field, size(z0s, 1), eltype(z0s), info.stiff)
    base = ODEProblem(f, z0s[:, 1], (ts[1], ts[end]), p)
    # A program has memory of its own, so each trajectory is solved with a copy of the field.
    function prob_func(problem, context...)
        i = first(context) isa Integer ? first(context) : first(context).sim_id
        own, _ = odefunction(copy(run.field), size(z0s, 1), eltype(z0s), info.stiff)
        return remake(problem; f = own, u0 = z0s[:, i], p = ps === nothing ? p : ps[:, i])
    end
    function output_func(sol, context...)
        zs = saved(sol, ts, size(z0s, 1), eltype(z0s))
        return (zs, get(PyNode.RETCODES, sol.retcode, "failed")), false
    end
    way = nprocs() > 1 ? EnsembleDistributed() : Threads.nthreads() > 1 ? EnsembleThreads() : EnsembleSerial()
    nprocs() > 1 && remotecall_eval(Main, workers(), :(using PyNode))
    many = solve(
        EnsembleProblem(base; prob_func, output_func), info.make(), way; trajectories = size(z0s, 2),
        PyNode.solve_keywords(info, (ts[1], ts[end]); o..., tstops = stops, keep = :nothing)..., saveat = ts,
    )
    return collect(many.u)
end

"""The state at all times (n, T) as they were saved on the way, NaN where the solve did not get."""
function saved(sol, times, n, ::Type{T}) where {T}
    zs = fill(T(NaN), n, length(times))
    j = 1
    for (i, t) in enumerate(times)
        while j < length(sol.t) && sol.t[j] != t
            j += 1
        end
        sol.t[j] == t && copyto!(zs, (i - 1) * n + 1, sol.u[j], 1, n)
    end
    return zs
end

# -- the command line -------------------------------------------------------------------------

const COMMANDS = Dict("solve" => solve_command, "gradient" => gradient_command, "train" => train_command, "ensemble" => ensemble_command)

"""Status 0, or 2 for a mistake in the arguments or in the folder."""
function main(arguments)
    if isempty(arguments) || arguments[1] in ("-h", "--help")
        print(USAGE)
        return isempty(arguments) ? 2 : 0
    end
    try
        haskey(COMMANDS, arguments[1]) || refuse("there is no command ", arguments[1], "\n", USAGE)
        length(arguments) >= 2 || refuse(arguments[1], " needs a folder\n", USAGE)
        options = parse_options(arguments[3:end])
        COMMANDS[arguments[1]](read_folder(arguments[2]), options)
        return 0
    catch error
        error isa Union{ProgramError, ArgumentError, ErrorException} || rethrow()
        println(stderr, "pynode: error: ", error isa ProgramError ? error.message : sprint(showerror, error))
        return 2
    end
end

function parse_options(words)
    epochs, lr, every, resume = 100, 0.01, 10, false
    i = 1
    while i <= length(words)
        word = words[i]
        value() = i < length(words) ? words[i + 1] : refuse(word, " needs a value")
        if word == "--resume"
            resume = true
            i += 1
            continue
        elseif word == "--epochs"
            epochs = whole(word, value())
        elseif word == "--checkpoint-every"
            every = whole(word, value())
        elseif word == "--lr"
            lr = something(tryparse(Float64, value()), NaN)
            lr > 0 || refuse("--lr needs a positive number")
        else
            refuse("there is no option ", word, "\n", USAGE)
        end
        i += 2
    end
    return (; epochs, lr, every, resume)
end

function whole(word, text)
    n = tryparse(Int, text)
    n !== nothing && n >= 1 || refuse(word, " needs a whole number, 1 or more")
    return n
end

end
