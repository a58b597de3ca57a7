# Runs a program: one pass over its instructions, on memory that was set aside when it was loaded.

"""
A program that has been loaded and checked, with memory of its own: two tasks need two copies
(`copy(program)`).

- `code`: the instructions as integers, see "The packed form" in docs/program-format.md;
- `sizes`: of the nine slots;
- `outputs`: names and sizes.
"""
mutable struct Program{T <: AbstractFloat}  # mutable: handed on as one reference
    code::Vector{Int}
    constants::Vector{T}
    indices::Vector{Int}
    work::Vector{T}
    time::Vector{T}
    sizes::NTuple{9, Int}
    outputs::Vector{Pair{String, Int}}
    slots::Vector{Ptr{T}}
end

function Program(code, constants::Vector{T}, indices, work::Int, inputs::NamedTuple, outputs) where {T}
    out = ntuple(i -> i <= length(outputs) ? last(outputs[i]) : 0, 3)
    sizes = (length(constants), work, inputs.z, inputs.t, inputs.p, inputs.lam, out...)
    return Program{T}(code, constants, indices, zeros(T, work), zeros(T, 1), sizes, outputs, fill(Ptr{T}(0), 9))
end

Base.copy(p::Program{T}) where {T} = Program{T}(
    p.code, p.constants, p.indices, zeros(T, length(p.work)), zeros(T, 1), p.sizes, p.outputs, fill(Ptr{T}(0), 9),
)

"""
    run!(program, outputs, z, t, p, λ, from = 1, to = length(program.code))

Fill the `outputs`, a tuple of vectors. All vectors are contiguous and of the program's number type. A part of
the code is run on what the parts before it left in memory.
"""
function run!(program::Program{T}, outputs::Tuple, z, t, p, λ, from::Int = 1, to::Int = length(program.code)) where {T}
    check_sizes(program, outputs, z, p, λ)
    program.time[1] = t
    slots = program.slots
    GC.@preserve program outputs z p λ begin
        slots[1], slots[2] = pointer(program.constants), pointer(program.work)
        slots[3], slots[4], slots[5], slots[6] = pointer(z), pointer(program.time), pointer(p), pointer(λ)
        foreach((i, out) -> slots[6 + i] = pointer(out), ntuple(identity, length(outputs)), outputs)
        execute(program.code, from, to, slots, program.indices)
    end
    return nothing
end

"""The time that the program was run for last."""
time_of(program::Program) = program.time[1]

@inline function check_sizes(program::Program, outputs, z, p, λ)
    s = program.sizes
    fits = length(z) == s[3] && (s[5] == 0 || length(p) == s[5]) && (s[6] == 0 || length(λ) == s[6]) &&
        length(outputs) == length(program.outputs)
    for i in eachindex(outputs)
        fits &= length(outputs[i]) == s[6 + i]
    end
    fits || wrong_sizes(program, outputs, z, p, λ)
    return nothing
end

@noinline wrong_sizes(program, outputs, z, p, λ) = throw(
    DimensionMismatch(
        "a program for z, p, λ of sizes $(program.sizes[[3, 5, 6]]) and outputs $(program.outputs) was " *
            "given $(length(z)), $(length(p)), $(length(λ)) and $(length.(outputs))",
    ),
)

# One branch for each kind, each with a loop compiled for its function: no dynamic dispatch.
for (name, functions, operands) in ((:unary, UNARY, 1), (:binary, BINARY, 2), (:ternary, TERNARY, 3))
    flat, nd = Symbol(name, :!), Symbol(name, :_nd!)
    pointers, steps = (:a, :b, :c)[1:operands], (:sa, :sb, :sc)[1:operands]
    branches(call) = foldr(
        (i, rest) -> Expr(:if, :(kind == $(i - 1)), call(functions[i]), rest), eachindex(functions); init = :(error("no kind ", kind)),
    )
    each = collect(Iterators.flatten(zip(pointers, steps)))
    flat_arguments, flat_steps = operands == 1 ? ([:a], (1,)) : (each, steps)
    @eval function $flat(kind, n, out, $(flat_arguments...))
        $(branches(f -> :(map_flat!($f, n, out, ($(pointers...),), ($(flat_steps...),)))))
        return nothing
    end
    @eval function $nd(kind, shape, out, so, $(each...))
        $(branches(f -> :(map_nd!($f, shape, out, so, ($(pointers...),), ($(steps...),)))))
        return nothing
    end
end

"""Number of integers after the kind, by the instruction's number."""
const WIDTHS = (5, 16, 9, 22, 12, 28, 19, 18, 12, 7, 6, 6)

function execute(code::Vector{Int}, from::Int, to::Int, slots::Vector{Ptr{T}}, indices::Vector{Int}) where {T}
    next = from
    while next <= to
        @inbounds number = code[next]
        instruction!(number, code, next + 1, slots, indices)
        @inbounds next += 2 + WIDTHS[number]
    end
    return nothing
end

# What an instruction's integers say: `code[i]` is its kind. Products, and all that is rare, are functions apart, so that
# the loop above stays short: the registers and memory that they need would else be set aside for every instruction.
@inline integers(code, i) = j -> @inbounds code[i + j]
@inline addresses(code, i, slots) = j -> @inbounds step(slots[code[i + j] + 1], code[i + j + 1])
@inline fours(code, i) = j -> @inbounds (code[i + j], code[i + j + 1], code[i + j + 2], code[i + j + 3])

@inline function instruction!(number, code, i, slots, indices)
    if number == 7
        product!(code, i, slots)
    elseif number == 1
        int, address = integers(code, i), addresses(code, i, slots)
        unary!(int(0), int(1), address(2), address(4))
    elseif number == 3
        int, address = integers(code, i), addresses(code, i, slots)
        binary!(int(0), int(1), address(2), address(4), int(6), address(7), int(9))
    else
        other!(number, code, i, slots, indices)
    end
    return nothing
end

@noinline function product!(code, i, slots)
    int, address = integers(code, i), addresses(code, i, slots)
    mm!(int(1), int(2), int(3), address(4), int(6), address(7), int(9) == 1, int(10),
        address(11), int(13) == 1, int(14), int(15) == 1, address(16), int(18), int(19))
    return nothing
end

@noinline function other!(number, code, i, slots, indices)
    int, address, four = integers(code, i), addresses(code, i, slots), fours(code, i)
    kind = int(0)
    if number == 4
        binary_nd!(kind, four(1), address(5), four(7), address(11), four(13), address(17), four(19))
    elseif number == 2
        unary_nd!(kind, four(1), address(5), four(7), address(11), four(13))
    elseif number == 9
        reduce!(kind, int(1), int(2), int(3), address(4), int(6), int(7), address(8), int(10), int(11), int(12))
    elseif number == 5
        ternary!(kind, int(1), address(2), address(4), int(6), address(7), int(9), address(10), int(12))
    elseif number == 6
        ternary_nd!(kind, four(1), address(5), four(7), address(11), four(13), address(17), four(19), address(23), four(25))
    elseif number == 8
        m, n, k = int(2), int(3), int(4)
        for r in 0:(int(1) - 1)
            out, a, b = step(address(5), r * int(7)), step(address(9), r * int(11)), step(address(14), r * int(16))
            rows!(m, n, k, out, int(8), a, int(12) == 1, int(13), b, int(17) == 1, int(18), false, out, 0, 0)
        end
    elseif number == 10
        scan!(int(1), int(2), int(3), address(4), address(6))
    elseif number == 11
        gather!(int(1), address(2), address(4), indices, int(6))
    else
        scatter_add!(int(1), address(2), address(4), indices, int(6))
    end
    return nothing
end
