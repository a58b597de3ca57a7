"""
Programs on KernelAbstractions' backends: one kernel for each instruction. Kernels are compiled for the functions
behind the kinds of instructions, not for networks.
"""
module PyNodeKernelAbstractionsExt

using KernelAbstractions: KernelAbstractions, CPU, @index, @kernel, allocate
using PyNode: PyNode, BINARY, DeviceProgram, Program, TERNARY, UNARY, WIDTHS, divided, high, just, low, parts

const GROUP = 256  # work items that run together

function PyNode.DeviceProgram(program::Program{T}, backend::KernelAbstractions.Backend) where {T <: AbstractFloat}
    indices, tables = PyNode.with_tables(program)
    vector(n) = fill!(allocate(backend, T, (n,)), zero(T))
    work, time = vector(length(program.work)), vector(1)
    return DeviceProgram(
        program, backend, moved(backend, program.constants), moved(backend, indices), work, time,
        vector(PyNode.partial_size(program)), moved(backend, T[0, 1]), tables, [time for _ in 1:9], NaN,
    )
end

moved(backend, x::Vector) = copyto!(allocate(backend, eltype(x), size(x)), x)

PyNode.device_backend(::Val{:kernels}, ordinal) = CPU()
PyNode.settle_device(backend::KernelAbstractions.Backend) = KernelAbstractions.synchronize(backend)
PyNode.has_gemm(::CPU) = true
function PyNode.gemm_on!(::CPU, units, batch, (m, n, k), out, o, os, ldc, a, p, as, ta, lda, b, q, bs, tb, ldb, add)
    at(x, offset) = pointer(x, offset + 1)
    GC.@preserve out a b for r in 0:(batch - 1)
        C, A, B = at(out, o + r * os), at(a, p + r * as), at(b, q + r * bs)
        PyNode.mm!(m, n, k, C, ldc, A, ta, lda, B, tb, ldb, add, C, ldc, 1)
    end
    return nothing
end

PyNode.wrap_device(::CPU, ::Type{T}, address, dims) where {T} = unsafe_wrap(Array, Ptr{T}(address % UInt), dims)

function PyNode.execute(d::DeviceProgram, from::Int, to::Int)
    code, place = d.program.code, from
    while place <= to
        number, next = code[place], place + 2 + WIDTHS[code[place]]
        if number == 7 && next <= to && follows_in_place(code, place, next)
            instruction!(d, number, code, place + 1, UNARY[code[next + 1] + 1])
            next += 2 + WIDTHS[1]
        else
            instruction!(d, number, code, place + 1)
        end
        place = next
    end
    return nothing
end

"""Whether the instruction at `next` applies a function to all of the product at `place`, in place: one kernel can do both."""
function follows_in_place(code, place, next)
    m, n, slot, offset, ldc = code[place + 2], code[place + 3], code[place + 5], code[place + 6], code[place + 7]
    return code[next] == 1 && ldc == n && code[next + 2] == m * n &&
        code[next + 3] == code[next + 5] == slot && code[next + 4] == code[next + 6] == offset
end

"""One instruction, whose kind is at `code[i]`: operands are vectors and offsets. `then` is applied to each entry of a product."""
function instruction!(d::DeviceProgram, number, code, i, then = identity)
    int(j) = code[i + j]
    address(j) = (d.slots[code[i + j] + 1], code[i + j + 1])
    four(j) = (int(j), int(j + 1), int(j + 2), int(j + 3))
    if number == 1
        launch(d, map1!, int(1), UNARY[int(0) + 1], address(2)..., address(4)...)
    elseif number == 2
        launch(d, map1_nd!, prod(four(1)), UNARY[int(0) + 1], four(1), address(5)..., four(7), address(11)..., four(13))
    elseif number == 3
        launch(d, map2!, int(1), BINARY[int(0) + 1], address(2)..., address(4)..., int(6), address(7)..., int(9))
    elseif number == 4
        launch(
            d, map2_nd!, prod(four(1)), BINARY[int(0) + 1], four(1), address(5)..., four(7), address(11)..., four(13),
            address(17)..., four(19))
    elseif number == 5
        launch(
            d, map3!, int(1), TERNARY[int(0) + 1], address(2)..., address(4)..., int(6), address(7)..., int(9),
            address(10)..., int(12))
    elseif number == 6
        launch(
            d, map3_nd!, prod(four(1)), TERNARY[int(0) + 1], four(1), address(5)..., four(7), address(11)..., four(13),
            address(17)..., four(19), address(23)..., four(25))
    elseif number == 7
        add, sizes = int(15) == 1, (int(1), int(2), int(3))
        # Without an addend its numbers mean nothing; any memory will do.
        product!(
            d, then, 1, sizes, address(4)..., 0, int(6), address(7)..., 0, int(9) == 1, int(10), address(11)..., 0,
            int(13) == 1, int(14), add, (add ? address(16) : address(4))..., int(18), int(19))
    elseif number == 8
        product!(
            d, then, int(1), (int(2), int(3), int(4)), address(5)..., int(7), int(8), address(9)..., int(11), int(12) == 1, int(13),
            address(14)..., int(16), int(17) == 1, int(18), false, address(5)..., 0, 0)
    elseif number == 9
        reduce!(d, int(0), int(1), int(2), int(3), address(4)..., int(6), int(7), address(8)..., int(10), int(11), int(12))
    elseif number == 10
        launch(d, scan!, int(1) * int(3), int(2), int(3), address(4)..., address(6)...)
    elseif number == 11
        launch(d, gather!, int(1), address(2)..., address(4)..., d.indices, int(6))
    else
        table = d.tables[i - 1]
        launch(d, scatter_add!, table.count, address(2)..., address(4)..., d.indices, table.first, table.count)
    end
    return nothing
end

"""Start a kernel of `count` work items; they are done in no order."""
launch(d::DeviceProgram, kernel, count, arguments...) = kernel(d.backend, GROUP)(arguments...; ndrange = count)

# -- elementwise ----------------------------------------------------------------------------------

@kernel function map1!(f, out, o, a, p)
    i = @index(Global, Linear)
    @inbounds out[o + i] = f(a[p + i])
end

@kernel function map2!(f, out, o, a, p, sa, b, q, sb)
    i = @index(Global, Linear)
    @inbounds out[o + i] = f(a[p + (i - 1) * sa + 1], b[q + (i - 1) * sb + 1])
end

@kernel function map3!(f, out, o, a, p, sa, b, q, sb, c, r, sc)
    i = @index(Global, Linear)
    @inbounds out[o + i] = f(a[p + (i - 1) * sa + 1], b[q + (i - 1) * sb + 1], c[r + (i - 1) * sc + 1])
end

"""
Quotient and remainder of numbers from 0 to 2³¹, the second not 0: counts have been checked, and a division that
checks once more, in 64 bits, takes a device longer than most instructions' own work.
"""
@inline function quotient(i::Int, n::Int)
    q = Core.Intrinsics.udiv_int(i % UInt32, n % UInt32) % Int
    return q, i - q * n
end

"""The i-th place, from 0, of an array of that shape in row-major order, along its four dimensions."""
@inline function place_of(i, shape)
    i, l = quotient(i, shape[4])
    i, k = quotient(i, shape[3])
    i, j = quotient(i, shape[2])
    return (i, j, k, l)
end

@inline along(place, s) = place[1] * s[1] + place[2] * s[2] + place[3] * s[3] + place[4] * s[4] + 1

@kernel function map1_nd!(f, shape, out, o, so, a, p, sa)
    at = @index(Global, Linear)
    place = place_of(at - 1, shape)
    @inbounds out[o + along(place, so)] = f(a[p + along(place, sa)])
end

@kernel function map2_nd!(f, shape, out, o, so, a, p, sa, b, q, sb)
    at = @index(Global, Linear)
    place = place_of(at - 1, shape)
    @inbounds out[o + along(place, so)] = f(a[p + along(place, sa)], b[q + along(place, sb)])
end

@kernel function map3_nd!(f, shape, out, o, so, a, p, sa, b, q, sb, c, r, sc)
    at = @index(Global, Linear)
    place = place_of(at - 1, shape)
    @inbounds out[o + along(place, so)] = f(a[p + along(place, sa)], b[q + along(place, sb)], c[r + along(place, sc)])
end

# -- matrix products ------------------------------------------------------------------------------

const GEMM_FROM = 32  # terms of an entry, from which a BLAS is asked: below, one kernel does the addend as well

"""
`batch` products A·B (+ addend), see docs/program-format.md; os, as, bs are the steps from one to the next. Of each
entry `f` is taken in the end.
"""
function product!(d, f, batch, (m, n, k), out, o, os, ldc, a, p, as, ta, lda, b, q, bs, tb, ldb, add, c, r, ci, cj)
    if k >= GEMM_FROM && PyNode.has_gemm(d.backend)
        in_place = add && c === out && r == o && (m == 1 || ci == ldc) && (n == 1 || cj == 1)
        PyNode.gemm_on!(d.backend, d.units, batch, (m, n, k), out, o, os, ldc, a, p, as, ta, lda, b, q, bs, tb, ldb, in_place)
        rest = add && !in_place  # only an mm, of one product, has an addend and an f
        (rest || f !== identity) && launch(d, finish!, m * n, f, n, out, o, ldc, rest, c, r, ci, cj)
    else
        ai, al = ta ? (1, lda) : (lda, 1)
        bl, bj = tb ? (1, ldb) : (ldb, 1)
        launch(d, products!, batch * m * n, f, m, n, k, out, o, os, ldc, a, p, as, ai, al, b, q, bs, bl, bj, add, c, r, ci, cj)
    end
    return nothing
end

@kernel function products!(f, m, n, k, out, o, os, ldc, a, p, as, ai, al, b, q, bs, bl, bj, add, c, r, ci, cj)
    at = @index(Global, Linear)
    rest, j = quotient(at - 1, n)
    batch, i = quotient(rest, m)
    x, y = p + batch * as + i * ai + 1, q + batch * bs + j * bj + 1
    sum = @inbounds add ? c[r + i * ci + j * cj + 1] : zero(eltype(out))
    for l in 0:(k - 1)
        sum = @inbounds muladd(a[x + l * al], b[y + l * bl], sum)
    end
    @inbounds out[o + batch * os + i * ldc + j + 1] = f(sum)
end

"""What is left to do of a product that a BLAS has made: the addend, if it has one, and `f`."""
@kernel function finish!(f, n, out, o, ldc, add, c, r, ci, cj)
    at = @index(Global, Linear)
    i, j = quotient(at - 1, n)
    place = o + i * ldc + j + 1
    @inbounds out[place] = f(add ? out[place] + c[r + i * ci + j * cj + 1] : out[place])
end

# -- reductions and indexed copies ----------------------------------------------------------------

const FOLDS = ((+, just), (+, divided), (high, just), (low, just), (*, just))

function reduce!(d, kind, outer, n, inner, out, o, oo, oi, a, p, ao, an, ai)
    f, finish = FOLDS[kind + 1]
    size, count = parts(outer, n, inner)
    if count == 1
        launch(d, fold!, outer * inner, f, finish, n, n, n, 1, inner, out, o, oo, 0, oi, a, p, ao, an, ai)
    else
        rows = count * inner
        launch(d, fold!, outer * rows, f, just, n, n, size, count, inner, d.partial, 0, rows, inner, 1, a, p, ao, an, ai)
        launch(d, fold!, outer * inner, f, finish, n, count, count, 1, inner, out, o, oo, 0, oi, d.partial, 0, rows, inner, 1)
    end
    return nothing
end

"""
For each outer and inner index the terms in `count` parts of `size`, of `n` terms; `finish` is told how many there
were before, `total`. `oq` is the step of a part's result.
"""
@kernel function fold!(f, finish, total, n, size, count, inner, out, o, oo, oq, oi, a, p, ao, an, ai)
    at = @index(Global, Linear)
    rest, i = quotient(at - 1, inner)
    outer, part = quotient(rest, count)
    x, first = p + outer * ao + i * ai + 1, part * size
    sum = @inbounds a[x + first * an]
    for j in (first + 1):(min(n, first + size) - 1)
        sum = f(sum, @inbounds a[x + j * an])
    end
    @inbounds out[o + outer * oo + part * oq + i * oi + 1] = finish(sum, total)
end

@kernel function scan!(n, inner, out, o, a, p)
    at = @index(Global, Linear)
    outer, i = quotient(at - 1, inner)
    first = outer * n * inner + i + 1
    sum = @inbounds a[p + first]
    @inbounds out[o + first] = sum
    for j in 1:(n - 1)
        sum += @inbounds a[p + first + j * inner]
        @inbounds out[o + first + j * inner] = sum
    end
end

@kernel function gather!(out, o, a, p, indices, first)
    i = @index(Global, Linear)
    @inbounds out[o + i] = a[p + indices[first + i] + 1]
end

"""See `Table`: targets, where their terms begin, terms."""
@kernel function scatter_add!(out, o, a, p, indices, first, count)
    i = @index(Global, Linear)
    begins, terms = first + count, first + 2 * count + 1
    target = @inbounds o + indices[first + i] + 1
    sum = @inbounds out[target]
    for k in (@inbounds indices[begins + i]):(@inbounds(indices[begins + i + 1]) - 1)
        sum += @inbounds a[p + indices[terms + k + 1] + 1]
    end
    @inbounds out[target] = sum
end

end
