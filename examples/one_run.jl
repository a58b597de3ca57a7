# One run, two languages: this file and one_run.py do the same to the same folder. See there.
#
#     python examples/one_run.py --out results/one_run
#     julia --project=. examples/one_run.jl results/one_run

using PyNode
using PyNode.Run: npzread, npzwrite

const LEARNING_RATE = 0.02
const OPTIONS = (; rtol = 1.0e-8, atol = 1.0e-10)

folder = get(ARGS, 1, "results/one_run")
python = npzread(joinpath(folder, "python.npz"))
data = npzread(joinpath(folder, "data.npz"))
field = load_field(joinpath(folder, "field.json"))

# The states are (N, T) here, torch's (T, N).
z0, ts, targets = vec(data["z0"]), data["ts"], permutedims(data["targets"])

"""The loss, its gradient, and the states for parameters p."""
function fit(p)
    fwd = forward(field, z0, p, ts; solver = "tsit5", OPTIONS...)
    difference = fwd.zs .- targets
    g = gradient(fwd, 2 .* difference ./ length(difference); sensitivity = "gauss", times = false, OPTIONS...)
    return sum(abs2, difference) / length(difference), g.p, fwd.zs
end

function train(p, epochs)
    m, v, losses = zero(p), zero(p), Float64[]
    for k in 1:epochs
        loss, g, _ = fit(p)
        @. m = 0.9 * m + 0.1 * g
        @. v = 0.999 * v + 0.001 * g^2
        @. p -= LEARNING_RATE * (m / (1 - 0.9^k)) / (sqrt(v / (1 - 0.999^k)) + 1.0e-8)
        push!(losses, loss)
    end
    return p, losses
end

p, losses = train(vec(copy(data["p"])), length(python["losses"]))
_, _, zs = fit(p)
npzwrite(joinpath(folder, "julia.npz"), Dict("losses" => losses, "p" => p, "zs" => permutedims(zs)))
println("Julia: loss ", round(losses[1]; digits = 6), " at first, ", round(losses[end]; digits = 6), " after ", length(losses), " epochs")
for (name, here) in (("losses", losses), ("p", p), ("zs", permutedims(zs)))
    println(name, ": largest difference ", maximum(abs, here .- python[name]))
end
