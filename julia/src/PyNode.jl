"""
The Julia side of pynode: solves of differential equations by OrdinaryDiffEq and their gradients
by SciMLSensitivity, for fields that bring their own vector-Jacobian products. It knows nothing of
Python.

States and parameters are flat vectors; a batch of B samples of D entries is the (D, B) matrix in
column-major order, which is torch's (B, D) in row-major order.
"""
module PyNode

using LinearAlgebra
using ADTypes: AutoFiniteDiff
using ForwardDiff
using JSON: JSON
using OrdinaryDiffEqBDF: FBDF
using OrdinaryDiffEqCore: IController
using OrdinaryDiffEqHighOrderRK: DP8
using OrdinaryDiffEqLowOrderRK: BS3, DP5, Euler, Heun, Midpoint, RK4
using OrdinaryDiffEqRosenbrock: Rodas4, Rodas5P, Rosenbrock23
using OrdinaryDiffEqSDIRK: KenCarp4, Kvaerno5, TRBDF2
using OrdinaryDiffEqTsit5: AutoTsit5, Tsit5
using OrdinaryDiffEqVerner: Vern7
using SciMLLogging: SciMLLogging
using SciMLBase: SciMLBase, FullSpecialize, ODEFunction, ODEProblem, ReturnCode, get_proposed_dt, init, set_proposed_dt!, solve, step!
using SciMLSensitivity: BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, QuadratureAdjoint,
    ZygoteVJP, adjoint_sensitivities

export AbstractField, CallbackField, DeviceField, JuliaField, ProgramField, ensemble, ensemble_solvers, forward,
    forward_sensitivities, gradient, load_field,
    sensitivities, solvers

include("fastmath.jl")
include("functions.jl")
include("kernels.jl")
include("products.jl")
include("interpreter.jl")
include("check.jl")
include("fields.jl")
include("evaluations.jl")
include("program_field.jl")
include("device.jl")
include("callback_field.jl")
include("files.jl")
include("solvers.jl")
include("reads.jl")
include("forward.jl")
include("method.jl")
include("discrete.jl")
include("discrete_device.jl")
include("adjoint.jl")
include("forward_sensitivity.jl")
include("written_out.jl")
include("ensemble.jl")
include("memory.jl")
include("run.jl")
include("precompile.jl")

end
