# Programs on an accelerator: the memory of a lowered field lies there, and each instruction is one kernel, or
# a product of a vendor's BLAS. What runs them is the package extension PyNodeKernelAbstractionsExt.

"""
The sums of one `scatter_add`, target by target, so that each target is one thread's and its terms are added in
their order: in `indices`, after `first` numbers, the `count` targets, where the terms of each begin and the
last ones end (from 0), then the terms.
"""
struct Table
    first::Int
    count::Int
end

"""
A program whose memory lies on a device, `V` being the device's vectors: [`run!`](@ref) takes and fills such.

- `program`: its code, sizes and outputs;
- `backend`: KernelAbstractions' name of the device;
- `indices`: the program's, and after them what `scatter_add` needs, see `Table`;
- `partial`: what long reductions add up in parts;
- `units`: 0 and 1, which a BLAS on a device reads there;
- `t`: the time that `time` holds.
"""
mutable struct DeviceProgram{T, V <: AbstractVector{T}, I <: AbstractVector{Int}, B}
    program::Program{T}
    backend::B
    constants::V
    indices::I
    work::V
    time::V
    partial::V
    units::V
    tables::Dict{Int, Table}
    slots::Vector{V}
    t::Float64
end

"""Targets in order, beginnings, terms: of indices that say where the i-th term goes."""
function table_of(indices)
    terms = sort(eachindex(indices); by = i -> indices[i], alg = MergeSort)  # stable
    begins = [k for k in eachindex(terms) if k == 1 || indices[terms[k]] != indices[terms[k - 1]]]
    return length(begins), [indices[terms[begins]]; begins .- 1; length(terms); terms .- 1]
end

"""The indices of a program followed by the tables of its sums, and the tables by their places in the code."""
function with_tables(program::Program)
    indices, tables = copy(program.indices), Dict{Int, Table}()
    each_instruction(program) do number, place
        number == 12 || return
        n, first = program.code[place + 2], program.code[place + 7]
        count, table = table_of(program.indices[(first + 1):(first + n)])
        tables[place] = Table(length(indices), count)
        append!(indices, table)
    end
    return indices, tables
end

function each_instruction(f, program::Program)
    place = 1
    while place <= length(program.code)
        f(program.code[place], place)
        place += 2 + WIDTHS[program.code[place]]
    end
end

"""
A reduction is split where each entry has many terms and there are too few entries to occupy a device: into parts
of as many terms as there are parts. (terms a part, parts).
"""
function parts(outer, n, inner)
    n < 256 || outer * inner >= 2^14 ? (n, 1) : (size = isqrt(n); (size, cld(n, size)))
end

"""How many numbers the partial sums of a program's largest reduction are."""
function partial_size(program::Program)
    largest = 0
    each_instruction(program) do number, place
        number == 9 || return
        outer, n, inner = program.code[(place + 2):(place + 4)]
        count = parts(outer, n, inner)[2]
        count > 1 && (largest = max(largest, outer * count * inner))
    end
    return largest
end

"""
    DeviceField(field, backend)

A [`ProgramField`](@ref) whose memory lies on a device, for states and parameters there; `backend` is one of
KernelAbstractions', which must be loaded. The same solvers and gradients as on the CPU, but for implicit ones,
whose linear algebra would be of the whole batch.
"""
mutable struct DeviceField{T, P, V <: AbstractVector{T}} <: LoweredField{T}
    programs::Dict{String, P}
    f::P
    vjp_z::P
    vjp_p::P
    tgrad::P
    pullback::P
    split::Int
    evaluations::Vector{ProgramEvaluation{P, V}}
    rows::Int
    width::Int
    autonomous::Bool
    none::V
end

function DeviceField(field::ProgramField{T}, backend) where {T}
    moved = IdDict{Program{T}, DeviceProgram}()
    there(program) = get!(() -> DeviceProgram(program, backend), moved, program)
    f = there(field.f)
    return DeviceField(
        Dict(name => there(program) for (name, program) in field.programs),
        f, there(field.vjp_z), there(field.vjp_p), there(field.tgrad), there(field.pullback), field.split,
        ProgramEvaluation{typeof(f), typeof(f.work)}[], field.rows, field.width, field.autonomous, similar(f.work, 0),
    )
end

time_of(p::DeviceProgram) = p.t
Base.copy(p::DeviceProgram) = DeviceProgram(p.program, p.backend)

DeviceProgram(::Program, backend) =
    throw(ArgumentError("fields on $backend need the package KernelAbstractions: `using KernelAbstractions`"))

"""`x` as one of the device's vectors: itself, or a copy where it is not contiguous."""
on_device(x::V, ::Type{V}) where {V} = x
on_device(x::AbstractArray, ::Type{V}) where {V} = copyto!(V(undef, length(x)), x)
function on_device(x::DenseArray, ::Type{V}) where {V}
    flat = vec(x)
    flat isa V || throw(ArgumentError("the field's memory is of the type $V, and it was given a $(typeof(x))"))
    return flat
end

function into!(program::DeviceProgram{T, V}, out, ::Type{T}, z, t, p, λ) where {T, V}
    target = on_device(out, V)
    run!(program, (target,), on_device(z, V), t, on_device(p, V), on_device(λ, V))
    out isa DenseArray || copyto!(out, target)
    return nothing
end

"""Fill the outputs, as [`run!`](@ref) of a program in the computer's memory does; it returns before the device has."""
function run!(d::DeviceProgram{T, V}, outputs::Tuple, z, t, p, λ, from::Int = 1, to::Int = length(d.program.code)) where {T, V}
    check_sizes(d.program, outputs, z, p, λ)
    if d.t != t
        fill!(d.time, T(t))
        d.t = t
    end
    foreach((i, x) -> d.slots[i] = x, ntuple(identity, 6), (d.constants, d.work, z, d.time, p, λ))
    foreach((i, out) -> d.slots[6 + i] = out, ntuple(identity, length(outputs)), outputs)
    execute(d, from, to)
    return nothing
end

"""Run a part of the code; a method of the extension's."""
function execute end

# -- what a device does not do --------------------------------------------------------------------

"""Refuse a solver that the field's device cannot run."""
check_solver(::AbstractField, solver) = nothing
check_solver(::DeviceField, solver) = solver !== nothing && solver_info(solver).stiff && throw(
    ArgumentError(
        "$solver solves linear systems, which the julia engine does on the CPU only: move the state there, or, for many small " *
            "systems, solve them as an ensemble in one kernel",
    ),
)

# -- places ---------------------------------------------------------------------------------------

"""
KernelAbstractions' backend of a place: `"kernels"` is its backend for CPUs, on the computer's memory; `"cuda:0"`
the first NVIDIA GPU.
"""
function backend_of(place::AbstractString)
    name, ordinal = match(r"^([a-z]+)(?::([0-9]+))?$", place)
    return device_backend(Val(Symbol(name)), parse(Int, something(ordinal, "0")))
end
device_backend(::Val{name}, ordinal) where {name} = throw(
    ArgumentError("there is no place $name here: \"cuda:0\" needs the package CUDA, loaded, and an NVIDIA GPU, \"kernels\" KernelAbstractions"))

"""Make the device the one that this task works on; and wait until it has done all that it was asked to."""
enter(::AbstractField) = nothing
settle(::AbstractField) = nothing
enter(field::DeviceField) = enter_device(field.f.work)
settle(field::DeviceField) = settle_device(field.f.backend)

# Methods of these are the extensions'; wrap_device makes an array of memory that is the caller's.
enter_device(::AbstractArray) = nothing
function settle_device end
function wrap_device end

"""Whether the backend has a BLAS, and its products: out = A·B for each of a batch, or out += A·B (`add`)."""
has_gemm(backend) = false
function gemm_on! end
