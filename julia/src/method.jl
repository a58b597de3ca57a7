"""
An explicit Runge-Kutta method, with its dense output, as its own steps show it: for a step of size h from u,

    k_i = f(u + h Σ_j A[i, j] k_j, t + h c[i]),   u(t + h) = u + h Σ_i b[i] k_i,
    u(t + θh) = u + h Σ_i w_i k_i,  w = weights(method, θ).

- `first`, `last`: the stages at (t, u(t)) and at (t + h, u(t + h));
- `plain`: the stages, but these two, that the new state is made of, in order;
- `full`: those that dense output is made of as well.
"""
struct Method{T}
    A::Matrix{T}
    b::Vector{T}
    c::Vector{Float64}
    first::Int
    last::Int
    plain::Vector{Int}
    full::Vector{Int}
    w::Matrix{T}  # at the nodes θ below
end

# The weights of dense output are polynomials in θ of degree 8 at most: known at nine Chebyshev points, and
# between them by the barycentric formula (Berrut & Trefethen 2004), which is stable.
const NODES = [(1 - cospi((j - 1) / 8)) / 2 for j in 1:9]
const BARYCENTRIC = [(isodd(j) ? 1.0 : -1.0) * (j in (1, 9) ? 0.5 : 1.0) for j in 1:9]

"""The weights of the slopes in the state at t + θh."""
function weights!(w::Vector{T}, method::Method{T}, θ::Float64) where {T}
    fill!(w, zero(T))
    exact = findfirst(==(θ), NODES)
    exact === nothing || return copyto!(w, view(method.w, :, exact))
    total = sum(BARYCENTRIC[j] / (θ - NODES[j]) for j in eachindex(NODES))
    for j in eachindex(NODES)
        share = T(BARYCENTRIC[j] / (θ - NODES[j]) / total)
        w .+= share .* view(method.w, :, j)
    end
    return w
end

const CALLS_AT_MOST = 48

"""
A lowered field that returns unit vectors, at its i-th call the i-th, and writes down where it was called: the
state at the i-th call, divided by h, is the i-th row of A. A program like any other, so that the solvers need
not be compiled for it.
"""
function recorder(::Type{T}) where {T}
    n = CALLS_AT_MOST
    count, unit, times, rows = 0, 8, 8 + n, 8 + 2n  # places in the work memory
    code = reduce(vcat, packed.((
        ["binary", "add", 1, 1, count, 1, count, 1, 0, 0, 1],
        ["binary", "eq", n, 1, unit, 0, 0, 1, 1, count, 0],
        ["ternary", "fma", n, 1, times, 1, unit, 1, 3, 0, 0, 1, times, 1],
        ["mm", n, n, 1, 1, rows, n, 1, unit, 0, 1, 2, 0, 0, n, 1, 1, rows, n, 1],
        ["unary", "identity", n, 6, 0, 1, unit],
    )))
    sizes = (; z = n, t = 1, p = 0, lam = 0)
    program = check(Program(code, collect(T, 1:n), Int[], 8 + 2n + n^2, sizes, ["dz" => n]))
    return ProgramField{T}(Dict("f" => program), 1, n, false)
end

const METHODS = Dict{Tuple{String, DataType, Bool}, Method}()
const METHODS_LOCK = ReentrantLock()

"""
The method of a solver; `fixed` where it takes fixed steps. It is the same with any controller, but by the one
that a solve has used already it is observed without compiling anything.
"""
function method_of(solver::String, ::Type{T}, fixed::Bool; controller = "own") where {T}
    return lock(METHODS_LOCK) do
        get!(() -> observed(solver, T, fixed, controller), METHODS, (solver, T, fixed))
    end::Method{T}
end

function observed(solver, ::Type{T}, fixed, controller) where {T}
    n, field, size = CALLS_AT_MOST, recorder(T), fixed ? 1.0 : nothing
    # With such tolerances the first step, of whatever size, is accepted.
    integrator, _ = start(field, zeros(T, n), T[], (0.0, 1.0); solver, rtol = 1.0e6, atol = 1.0e6, dt = size, adaptive = !fixed, controller)
    step!(integrator)
    h = T(integrator.t)
    b = integrator.u ./ h
    w, out = zeros(T, n, length(NODES)), zeros(T, n)
    for (j, θ) in enumerate(NODES)
        integrator(out, θ * integrator.t)
        w[:, j] = out ./ h
    end
    w[:, 1] .= 0
    w[:, end] = b
    memory = field.f.work
    calls = Int(memory[1])
    calls <= n || error("a step of $solver calls the field $calls times, more than the $n that are foreseen")
    A = permutedims(reshape(memory[(8 + 2n + 1):(8 + 2n + n^2)], n, n)) ./ h
    c = Float64.(memory[(8 + n + 1):(8 + 2n)] ./ h)
    return method_of_calls(solver, A[1:calls, 1:calls], b[1:calls], c[1:calls], w[1:calls, :])
end

"""The method of its calls, of which several may be the same stage, and some serve the error estimate only."""
function method_of_calls(solver, A::Matrix{T}, b, c, w) where {T}
    near(x, y) = isapprox(x, y; atol = 16 * eps(T))
    for i in eachindex(b), j in 1:(i - 1)
        near(A[i, :], A[j, :]) && near(c[i], c[j]) || continue
        A[:, j] .+= A[:, i]  # one stage, called again
        b[j] += b[i]
        w[j, :] .+= w[i, :]
        A[:, i] .= 0
        b[i] = 0
        w[i, :] .= 0
    end
    last = findlast(i -> near(A[i, :], b) && near(c[i], 1.0), eachindex(b))
    if last === nothing
        A, b, c = [A zero(b); transpose(b) zero(T)], [b; zero(T)], [c; 1.0]
        w = [w; zeros(T, 1, size(w, 2))]
        last = length(b)
    end
    state = stages_of(A, b .!= 0)
    output = stages_of(A, vec(any(w .!= 0; dims = 2)) .| (b .!= 0))
    used = sort!(union(output, last))
    first = only(i for i in used if all(iszero, A[i, :]) && i != last)
    place(i) = findfirst(==(i), used)
    b[last] == 0 || error("$solver is no explicit method")
    return Method{T}(
        A[used, used], b[used], c[used], place(first), place(last), place.(setdiff(state, first, last)),
        place.(setdiff(output, first)), w[used, :],
    )
end

"""Those stages and all that they are made of, in order."""
function stages_of(A, wanted)
    for i in reverse(eachindex(wanted))
        wanted[i] && (wanted .|= A[i, :] .!= 0)
    end
    return findall(wanted)
end
