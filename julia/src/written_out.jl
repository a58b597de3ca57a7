# A program written out as a function of numbers, without memory: what kernels need that solve one
# small system per GPU thread. The program is run once on expressions in place of numbers.

"""Statements beyond which a program is not written out: the compiler's time grows faster than they."""
const MOST_STATEMENTS = 20_000

"""
    written_out(program, make)

The expression of a function `(u, p, t) -> make(entries...)` that computes the entries of the
program's first output. Throws an `ArgumentError` for a program of more than
$(MOST_STATEMENTS) operations.
"""
function written_out(program::Program{T}, make) where {T}
    m = expressions(program)
    return :((u, p, t) -> @inbounds $(Expr(:block, :(t = convert($T, t)), m.statements..., Expr(:call, make, m.slots[7]...))))
end

"""What the slots hold after the program has run on expressions, and the statements that it took."""
function expressions(program::Program)
    m = Expressions(program)
    code, i = program.code, 1
    while i <= length(code)
        number = code[i]
        write_out!(m, Val(number), code[i + 1], view(code, (i + 2):(i + 1 + WIDTHS[number])), program.indices)
        i += 2 + WIDTHS[number]
    end
    return m
end

"""The nine slots, holding numbers, names and expressions, and the statements so far."""
struct Expressions{T}
    slots::Vector{Vector{Any}}
    statements::Vector{Expr}
end

function Expressions(program::Program{T}) where {T}
    entries(name, n) = Any[:($name[$i]) for i in 1:n]
    _, work, z, _, p, lam = program.sizes
    outputs = [fill!(Vector{Any}(undef, n), zero(T)) for n in program.sizes[7:9]]
    return Expressions{T}(
        [Any[program.constants...], Any[zero(T) for _ in 1:work], entries(:u, z), Any[:t], entries(:p, p), entries(:λ, lam), outputs...], Expr[],
    )
end

"""What operand `x[j], x[j + 1]` holds `i` entries on."""
entry(m::Expressions, x, j, i) = m.slots[x[j] + 1][x[j + 1] + i + 1]
set!(m::Expressions, x, j, i, value) = (m.slots[x[j] + 1][x[j + 1] + i + 1] = value)

"""`f` of some entries: a number where all are, else the name of a new statement."""
function apply!(m::Expressions, f, arguments...)
    f === identity && return only(arguments)
    all(a -> a isa Number, arguments) && return f(arguments...)
    length(m.statements) < MOST_STATEMENTS ||
        throw(ArgumentError("the field takes more than $MOST_STATEMENTS operations for one sample: too many for a kernel that solves each by itself"))
    name = Symbol(:x, length(m.statements) + 1)
    push!(m.statements, :($name = $(Expr(:call, f, arguments...))))
    return name
end

write_out!(m, ::Val{1}, kind, x, _) = elementwise!(m, UNARY[kind + 1], (x[1],), ((2, (1,)), (4, (1,))), x)
write_out!(m, ::Val{3}, kind, x, _) = elementwise!(m, BINARY[kind + 1], (x[1],), ((2, (1,)), (4, (x[6],)), (7, (x[9],))), x)
write_out!(m, ::Val{5}, kind, x, _) =
    elementwise!(m, TERNARY[kind + 1], (x[1],), ((2, (1,)), (4, (x[6],)), (7, (x[9],)), (10, (x[12],))), x)
for (number, functions, operands) in ((2, :UNARY, 1), (4, :BINARY, 2), (6, :TERNARY, 3))
    @eval write_out!(m, ::Val{$number}, kind, x, _) =
        elementwise!(m, $functions[kind + 1], x[1:4], ntuple(k -> (6k - 1, x[(6k + 1):(6k + 4)]), $(operands + 1)), x)
end

"""`out = f(operands...)` over all indices below `shape`; the first operand is `out`: (place, strides)."""
function elementwise!(m, f, shape, operands, x)
    for index in Iterators.product((0:(n - 1) for n in reverse(collect(shape)))...)
        at(k) = sum(reverse(index) .* Tuple(operands[k][2]))
        values = (entry(m, x, operands[k][1], at(k)) for k in 2:length(operands))
        set!(m, x, operands[1][1], at(1), apply!(m, f, values...))
    end
    return nothing
end

function write_out!(m, ::Val{7}, kind, x, _)
    rows, columns, inner, ldc, ta, lda, tb, ldb = x[[1, 2, 3, 6, 9, 10, 13, 14]]
    for i in 0:(rows - 1), j in 0:(columns - 1)
        total = x[15] == 1 ? entry(m, x, 16, i * x[18] + j * x[19]) : nothing
        set!(m, x, 4, i * ldc + j, product_entry!(m, x, 7, 11, 0, 0, (i, j, inner), (ta, lda, tb, ldb), total))
    end
    return nothing
end

function write_out!(m, ::Val{8}, kind, x, _)
    batch, rows, columns, inner = x[1:4]
    for r in 0:(batch - 1), i in 0:(rows - 1), j in 0:(columns - 1)
        value = product_entry!(m, x, 9, 14, r * x[11], r * x[16], (i, j, inner), x[[12, 13, 17, 18]], nothing)
        set!(m, x, 5, r * x[7] + i * x[8] + j, value)
    end
    return nothing
end

"""Entry (i, j) of A·B plus `total`."""
function product_entry!(m, x, a, b, from_a, from_b, (i, j, inner), (ta, lda, tb, ldb), total)
    for l in 0:(inner - 1)
        left = entry(m, x, a, from_a + (ta == 1 ? l * lda + i : i * lda + l))
        right = entry(m, x, b, from_b + (tb == 1 ? j * ldb + l : l * ldb + j))
        total = total === nothing ? apply!(m, *, left, right) : apply!(m, muladd, left, right, total)
    end
    return total
end

const FOLDS = (+, +, high, low, *)

function write_out!(m, ::Val{9}, kind, x, _)
    outer, n, inner = x[1:3]
    for o in 0:(outer - 1), i in 0:(inner - 1)
        total = entry(m, x, 8, o * x[10] + i * x[12])
        for j in 1:(n - 1)
            total = apply!(m, FOLDS[kind + 1], total, entry(m, x, 8, o * x[10] + j * x[11] + i * x[12]))
        end
        set!(m, x, 4, o * x[6] + i * x[7], kind == 1 ? apply!(m, divided, total, n) : total)
    end
    return nothing
end

function write_out!(m, ::Val{10}, kind, x, _)
    outer, n, inner = x[1:3]
    for o in 0:(outer - 1), i in 0:(inner - 1)
        total = nothing
        for j in 0:(n - 1)
            at = (o * n + j) * inner + i
            value = entry(m, x, 6, at)
            total = total === nothing ? value : apply!(m, +, total, value)
            set!(m, x, 4, at, total)
        end
    end
    return nothing
end

write_out!(m, ::Val{11}, kind, x, indices) =
    foreach(i -> set!(m, x, 2, i, entry(m, x, 4, indices[x[6] + i + 1])), 0:(x[1] - 1))

function write_out!(m, ::Val{12}, kind, x, indices)
    for i in 0:(x[1] - 1)
        j = indices[x[6] + i + 1]
        set!(m, x, 2, j, apply!(m, +, entry(m, x, 2, j), entry(m, x, 4, i)))
    end
    return nothing
end
