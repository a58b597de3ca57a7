# The adjoint problem carries no Jacobian of its own; its implicit solvers take one by finite
# differences, since automatic differentiation would need fields to accept its number type.
const FD = AutoFiniteDiff()

# Failures are told by retcodes; nothing is printed.
const SILENT = SciMLLogging.None()

"""
One solver: how to make it, its order, whether it adapts its steps, whether it is for stiff problems, and
whether its steps land on the output times, its dense output being of a lower order than its steps.
"""
struct SolverInfo
    make::Function
    order::Int
    adaptive::Bool
    stiff::Bool
    lands::Bool
end
SolverInfo(make, order, adaptive, stiff) = SolverInfo(make, order, adaptive, stiff, false)

const SOLVERS = Dict(
    "euler" => SolverInfo(() -> Euler(), 1, false, false),
    "midpoint" => SolverInfo(() -> Midpoint(), 2, true, false),
    "heun" => SolverInfo(() -> Heun(), 2, true, false),
    "rk4" => SolverInfo(() -> RK4(), 4, true, false),
    "bs3" => SolverInfo(() -> BS3(), 3, true, false),
    "dp5" => SolverInfo(() -> DP5(), 5, true, false),
    "tsit5" => SolverInfo(() -> Tsit5(), 5, true, false),
    "vern7" => SolverInfo(() -> Vern7(), 7, true, false),
    "dop853" => SolverInfo(() -> DP8(), 8, true, false),
    "rosenbrock23" => SolverInfo(() -> Rosenbrock23(autodiff = FD), 2, true, true),
    "rodas4" => SolverInfo(() -> Rodas4(autodiff = FD), 4, true, true),
    "rodas5p" => SolverInfo(() -> Rodas5P(autodiff = FD), 5, true, true),
    "trbdf2" => SolverInfo(() -> TRBDF2(autodiff = FD), 2, true, true),
    "kencarp4" => SolverInfo(() -> KenCarp4(autodiff = FD), 4, true, true),
    "kvaerno5" => SolverInfo(() -> Kvaerno5(autodiff = FD), 5, true, true, true),
    "fbdf" => SolverInfo(() -> FBDF(autodiff = FD), 5, true, true),
    "auto" => SolverInfo(() -> AutoTsit5(Rosenbrock23(autodiff = FD)), 5, true, true),
)

"""
The controller of step sizes by name: `"own"` is what the solver brings, `"i"` the elementary one, which
takes larger steps at loose tolerances and forgets past errors.
"""
function controller_of(name::AbstractString, solver::AbstractString)
    name == "own" && return nothing
    name == "i" || throw(ArgumentError("controller $(repr(name)) is not one of own, i"))
    solver in ("fbdf", "auto") && throw(ArgumentError("$solver has a controller of its own"))
    return IController()
end

"""Names of all solvers."""
solvers() = sort!(collect(keys(SOLVERS)))

function solver_info(name::AbstractString)
    haskey(SOLVERS, name) && return SOLVERS[name]
    throw(ArgumentError("solver $(repr(name)) is not one of $(join(solvers(), ", "))"))
end
