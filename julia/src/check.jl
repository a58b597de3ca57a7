# What is checked when a program is loaded, so that nothing need be checked while it runs and a file
# from anywhere can do no more than compute numbers: every address that an instruction can reach lies
# in its slot, nothing is written that may not be, and what is written overlaps nothing that is read.

"""A program or a file that breaks the rules of docs/program-format.md."""
struct ProgramError <: Exception
    message::String
end
Base.showerror(io::IO, e::ProgramError) = print(io, "not a valid program: ", e.message)

refuse(message...) = throw(ProgramError(string(message...)))

"""What an operand touches: in `slot`, from `offset`, all sums of multiples of the strides."""
struct Reach
    slot::Int
    offset::Int
    counts::Vector{Int}
    strides::Vector{Int}
end

lowest(r::Reach) = r.offset + sum(min(0, (n - 1) * s) for (n, s) in zip(r.counts, r.strides); init = 0)
highest(r::Reach) = r.offset + sum(max(0, (n - 1) * s) for (n, s) in zip(r.counts, r.strides); init = 0)

"""Counts and strides of the dimensions that are longer than 1: the others' strides mean nothing."""
walk(r::Reach) = [(n, s) for (n, s) in zip(r.counts, r.strides) if n > 1]

same(a::Reach, b::Reach) = a.slot == b.slot && a.offset == b.offset && walk(a) == walk(b)

function entries(r::Reach)
    found = [r.offset]
    for (n, s) in zip(r.counts, r.strides)
        found = [x + i * s for x in found for i in 0:(n - 1)]
    end
    return found
end

"""Whether the stretches from the lowest to the highest address have any in common."""
overlaps(a::Reach, b::Reach) = a.slot == b.slot && lowest(a) <= highest(b) && lowest(b) <= highest(a)

"""Written and read operands of an instruction, and which of those read may lie where it writes."""
function reaches(number, x)
    vector(j, n, s = 1) = Reach(x[j], x[j + 1], [n], [s])
    nd(j) = Reach(x[j], x[j + 1], x[1:4], x[(j + 2):(j + 5)])
    stored(j, rows, columns, transposed, ld) =
        transposed == 1 ? matrix(j, columns, rows, ld) : matrix(j, rows, columns, ld)
    matrix(j, rows, columns, ld) = Reach(x[j], x[j + 1], [rows, columns], [ld, 1])
    number == 1 && return vector(2, x[1]), [vector(4, x[1])], [true]
    number == 2 && return nd(5), [nd(11)], [true]
    number == 3 && return vector(2, x[1]), [vector(4, x[1], x[6]), vector(7, x[1], x[9])], [true, true]
    number == 4 && return nd(5), [nd(11), nd(17)], [true, true]
    number == 5 && return vector(2, x[1]), [vector(4, x[1], x[6]), vector(7, x[1], x[9]), vector(10, x[1], x[12])], [true, true, true]
    number == 6 && return nd(5), [nd(11), nd(17), nd(23)], [true, true, true]
    if number == 7
        m, n, k = x[1:3]
        reads = [stored(7, m, k, x[9], x[10]), stored(11, k, n, x[13], x[14])]
        x[15] == 1 && push!(reads, Reach(x[16], x[17], [m, n], [x[18], x[19]]))
        return matrix(4, m, n, x[6]), reads, [false, false, true]
    elseif number == 8
        batch, m, n, k = x[1:4]
        repeated(r, stride) = Reach(r.slot, r.offset, [batch; r.counts], [stride; r.strides])
        reads = [repeated(stored(9, m, k, x[12], x[13]), x[11]), repeated(stored(14, k, n, x[17], x[18]), x[16])]
        return repeated(matrix(5, m, n, x[8]), x[7]), reads, [false, false]
    elseif number == 9
        return Reach(x[4], x[5], [x[1], x[3]], [x[6], x[7]]), [Reach(x[8], x[9], x[1:3], x[10:12])], [false]
    elseif number == 10
        return vector(4, prod(x[1:3])), [vector(6, prod(x[1:3]))], [false]
    end
    return nothing
end

"""Integers of an instruction that count something, and those that are flags."""
const COUNTS = Dict(1 => 1:1, 2 => 1:4, 3 => 1:1, 4 => 1:4, 5 => 1:1, 6 => 1:4, 7 => 1:3, 8 => 1:4, 9 => 1:3, 10 => 1:3, 11 => 1:1, 12 => 1:1)
const FLAGS = Dict(3 => [6, 9], 5 => [6, 9, 12], 7 => [9, 13, 15], 8 => [12, 17])
const KINDS = Dict(1 => UNARY_NAMES, 2 => UNARY_NAMES, 3 => BINARY_NAMES, 4 => BINARY_NAMES, 5 => TERNARY_NAMES, 6 => TERNARY_NAMES, 9 => REDUCE_NAMES, 10 => ["sum"])
const LARGEST = 2^31  # no count, size or stride beyond it: sums and products of two do not overflow

function check(program::Program)
    sizes = program.sizes
    all(n -> 0 <= n <= LARGEST, sizes) || refuse("a slot has a size outside 0 to 2^31")
    written = [falses(n) for n in sizes[7:9]]
    code, i = program.code, 1
    while i <= length(code)
        number = code[i]
        1 <= number <= length(WIDTHS) || refuse("there is no instruction ", number)
        i + 1 + WIDTHS[number] <= length(code) || refuse("the last instruction is cut off")
        kind, x = code[i + 1], code[(i + 2):(i + 1 + WIDTHS[number])]
        kinds = get(KINDS, number, [""])
        0 <= kind < length(kinds) || refuse("instruction ", number, " has no kind ", kind)
        check_instruction(program, number, x, written)
        i += 2 + WIDTHS[number]
    end
    all(all, written) || refuse("not every entry of the outputs is written")
    return program
end

function check_instruction(program, number, x, written)
    all(v -> -LARGEST <= v <= LARGEST, x) || refuse("a number beyond 2^31")
    all(x[COUNTS[number]] .>= 1) || refuse("a count below 1")
    prod(big.(x[COUNTS[number]])) <= LARGEST || refuse("more than 2^31 entries")
    all(v -> 0 <= v <= 1, x[get(FLAGS, number, Int[])]) || refuse("a flag that is not 0 or 1")
    number in (7, 8) && check_leading(number, x)
    if number in (11, 12)
        check_indexed(program, number, x, written)
        return
    end
    out, reads, in_place = reaches(number, x)
    inside(program, out, true)
    for (read, allowed) in zip(reads, in_place)
        inside(program, read, false)
        overlaps(out, read) && !(allowed && same(out, read)) && refuse("an instruction writes what it reads")
    end
    targets = entries(out)
    allunique(targets) || refuse("an instruction writes an entry twice")
    mark(written, out.slot, targets)
    return
end

function check_leading(number, x)
    m, n, k, ldc, ta, lda, tb, ldb = number == 7 ? x[[1, 2, 3, 6, 9, 10, 13, 14]] : x[[2, 3, 4, 8, 12, 13, 17, 18]]
    fits = ldc >= n && lda >= (ta == 1 ? m : k) && ldb >= (tb == 1 ? k : n)
    fits || refuse("a matrix whose leading dimension is below its row length")
end

function check_indexed(program, number, x, written)
    n, first = x[1], x[6]
    0 <= first && first + n <= length(program.indices) || refuse("indices beyond the end of the vector")
    used = @view program.indices[(first + 1):(first + n)]
    low, high = extrema(used)
    0 <= low && high <= LARGEST || refuse("an index outside 0 to 2^31")
    spread(j) = Reach(x[j], x[j + 1], [high + 1], [1])
    plain(j) = Reach(x[j], x[j + 1], [n], [1])
    out, read = number == 11 ? (plain(2), spread(4)) : (spread(2), plain(4))
    inside(program, out, true)
    inside(program, read, false)
    overlaps(out, read) && refuse("an instruction writes what it reads")
    number == 11 && mark(written, out.slot, entries(out))
    return
end

function inside(program, r::Reach, writes)
    0 <= r.slot <= 8 || refuse("there is no slot ", r.slot)
    writes && r.slot in (0, 2, 3, 4, 5) && refuse("a write to slot ", r.slot, ", which holds inputs or constants")
    0 <= lowest(r) && highest(r) < program.sizes[r.slot + 1] ||
        refuse("an access outside slot ", r.slot, ", which holds ", program.sizes[r.slot + 1], " numbers")
end

mark(written, slot, targets) = slot >= 6 && (written[slot - 5][targets .+ 1] .= true)
