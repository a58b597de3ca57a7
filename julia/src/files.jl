# Lowered fields in files: JSON, data only. See docs/program-format.md.

const NUMBERS = Dict("unary" => 1, "unary_nd" => 2, "binary" => 3, "binary_nd" => 4, "ternary" => 5, "ternary_nd" => 6, "mm" => 7, "bmm" => 8, "reduce" => 9, "scan" => 10, "gather" => 11, "scatter_add" => 12)

"""
    load_field(path)

The [`ProgramField`](@ref) in a file that Python wrote. Throws a [`ProgramError`](@ref) for a file that
is not one; nothing in a file is ever run as code.
"""
function load_field(path::AbstractString)
    text = try
        read(path, String)
    catch error
        refuse("cannot read ", path, ": ", sprint(showerror, error))
    end
    return parse_field(text)
end

function parse_field(text::AbstractString)
    data = try
        JSON.parse(text)
    catch error
        refuse("not JSON: ", first(sprint(showerror, error), 200))
    end
    data isa AbstractDict && get(data, "format", "") == "pynode-lowered-field" || refuse("not a pynode-lowered-field")
    get(data, "version", 0) == 1 || refuse("version ", get(data, "version", "none"), " of the format; this reads version 1")
    T = get(data, "dtype", "") == "float64" ? Float64 : get(data, "dtype", "") == "float32" ? Float32 :
        refuse("dtype ", get(data, "dtype", "none"), " is not float32 or float64")
    programs = member(data, "programs", AbstractDict)
    rows, width = whole(member(data, "rows", Real)), whole(member(data, "width", Real))
    return ProgramField{T}(
        Dict(String(name) => parse_program(T, program) for (name, program) in programs),
        rows, width, member(data, "autonomous", Bool),
    )
end

function member(data, name, ::Type{S}) where {S}
    value = get(data, name, nothing)
    value isa S || refuse(name, " is missing or of the wrong type")
    return value
end

whole(x) = x isa Integer && !(x isa Bool) && abs(x) <= LARGEST ? Int(x) : refuse(first(repr(x), 40), " is not a whole number of at most 2^31")

number_of(T, x) = x isa Real && !(x isa Bool) ? T(x) : x == "inf" ? T(Inf) : x == "-inf" ? T(-Inf) : x == "nan" ? T(NaN) :
    refuse(first(repr(x), 40), " is not a number")

function parse_program(::Type{T}, data) where {T}
    data isa AbstractDict || refuse("a program is not an object")
    inputs = member(data, "inputs", AbstractDict)
    size_of(name) = whole(get(inputs, name, nothing))
    outputs = map(member(data, "outputs", AbstractVector)) do pair
        pair isa AbstractVector && length(pair) == 2 && pair[1] isa AbstractString || refuse("outputs are not names and sizes")
        String(pair[1]) => whole(pair[2])
    end
    length(outputs) <= 3 || refuse("more than three outputs")
    code = Int[]
    foreach(instruction -> append!(code, packed(instruction)), member(data, "code", AbstractVector))
    constants = T[number_of(T, x) for x in member(data, "constants", AbstractVector)]
    indices = Int[whole(x) for x in member(data, "indices", AbstractVector)]
    sizes = (; z = size_of("z"), t = size_of("t"), p = size_of("p"), lam = size_of("lam"))
    all(n -> 0 <= n, sizes) && 0 <= whole(get(data, "work", nothing)) <= 2^31 || refuse("a size outside its range")
    return check(Program(code, constants, indices, whole(data["work"]), sizes, collect(Pair{String, Int}, outputs)))
end

function packed(instruction)
    instruction isa AbstractVector && !isempty(instruction) && instruction[1] isa AbstractString || refuse("an instruction is not an array that begins with its name")
    number = get(NUMBERS, instruction[1], 0)
    number == 0 && refuse("there is no instruction ", first(instruction[1], 40))
    kinds = get(KINDS, number, nothing)
    kinds === nothing && return check_width(number, [number, 0, (whole(x) for x in instruction[2:end])...])
    length(instruction) > 1 || refuse(instruction[1], " has no kind")
    kind = findfirst(==(instruction[2]), kinds)
    kind === nothing && refuse(instruction[1], " has no kind ", first(repr(instruction[2]), 40))
    return check_width(number, [number, kind - 1, (whole(x) for x in instruction[3:end])...])
end

check_width(number, code) = length(code) == 2 + WIDTHS[number] ? code : refuse("instruction ", number, " has ", length(code) - 2, " integers, not ", WIDTHS[number])
