# Loops on raw memory. A program has been checked when it was loaded (check.jl), so nothing is
# checked here. `i` counts from 0; `at(a, i)` reads, `put!(a, i, x)` writes.

@inline at(a::Ptr, i::Int) = unsafe_load(a, i + 1)
@inline put!(a::Ptr{T}, i::Int, x) where {T} = unsafe_store!(a, convert(T, x), i + 1)
@inline step(a::Ptr{T}, n::Int) where {T} = a + n * sizeof(T)

# -- elementwise, contiguous ------------------------------------------------------------------

@inline function map1!(f::F, n, out, a) where {F}
    @simd ivdep for i in 0:(n - 1)
        put!(out, i, f(at(a, i)))
    end
end

@inline function map2!(f::F, n, out, a, sa, b, sb) where {F}
    if sa == 1 && sb == 1
        @simd ivdep for i in 0:(n - 1)
            put!(out, i, f(at(a, i), at(b, i)))
        end
    elseif sa == 1
        y = at(b, 0)
        @simd ivdep for i in 0:(n - 1)
            put!(out, i, f(at(a, i), y))
        end
    elseif sb == 1
        x = at(a, 0)
        @simd ivdep for i in 0:(n - 1)
            put!(out, i, f(x, at(b, i)))
        end
    else
        x = f(at(a, 0), at(b, 0))
        for i in 0:(n - 1)
            put!(out, i, x)
        end
    end
end

@inline function map3!(f::F, n, out, a, sa, b, sb, c, sc) where {F}
    if sa == 1 && sb == 1 && sc == 1
        @simd ivdep for i in 0:(n - 1)
            put!(out, i, f(at(a, i), at(b, i), at(c, i)))
        end
    else
        @simd ivdep for i in 0:(n - 1)
            put!(out, i, f(at(a, i * sa), at(b, i * sb), at(c, i * sc)))
        end
    end
end

# -- elementwise, four dimensions with strides ------------------------------------------------

"""The inner loop of a strided operation, called with the addresses of each row's operands."""
@inline function rows!(inner::F, shape, strides::NTuple{K}, pointers::NTuple{K}) where {F, K}
    for i in 0:(shape[1] - 1), j in 0:(shape[2] - 1), k in 0:(shape[3] - 1)
        inner(ntuple(x -> step(pointers[x], i * strides[x][1] + j * strides[x][2] + k * strides[x][3]), Val(K)))
    end
end

@inline function map1_nd!(f::F, shape, out, so, a, sa) where {F}
    n, o, s = shape[4], so[4], sa[4]
    rows!(shape, (so, sa), (out, a)) do (out, a)
        if o == 1 && s == 1
            map1!(f, n, out, a)
        else
            for l in 0:(n - 1)
                put!(out, l * o, f(at(a, l * s)))
            end
        end
    end
end

@inline function map2_nd!(f::F, shape, out, so, a, sa, b, sb) where {F}
    n, o, s, r = shape[4], so[4], sa[4], sb[4]
    rows!(shape, (so, sa, sb), (out, a, b)) do (out, a, b)
        if o == 1 && 0 <= s <= 1 && 0 <= r <= 1
            map2!(f, n, out, a, s, b, r)
        else
            for l in 0:(n - 1)
                put!(out, l * o, f(at(a, l * s), at(b, l * r)))
            end
        end
    end
end

@inline function map3_nd!(f::F, shape, out, so, a, sa, b, sb, c, sc) where {F}
    n, o, s, r, q = shape[4], so[4], sa[4], sb[4], sc[4]
    rows!(shape, (so, sa, sb, sc), (out, a, b, c)) do (out, a, b, c)
        for l in 0:(n - 1)
            put!(out, l * o, f(at(a, l * s), at(b, l * r), at(c, l * q)))
        end
    end
end

# -- matrix products --------------------------------------------------------------------------

const BLAS_FROM = 4096  # multiplications, from which a call of BLAS costs less than the loops below

"""out = A·B (+ addend), see docs/program-format.md."""
function mm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
    if k == 1 && !add && ldc == n  # an outer product of few columns
        n == 2 && return outer!(Val(2), m, out, a, ta ? 1 : lda, b, tb ? ldb : 1)
        n == 3 && return outer!(Val(3), m, out, a, ta ? 1 : lda, b, tb ? ldb : 1)
        n == 4 && return outer!(Val(4), m, out, a, ta ? 1 : lda, b, tb ? ldb : 1)
    end
    # Of these, few numbers make an entry: each is written once, its sum kept in a register.
    k == 1 && return narrow!(Val(1), m, n, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
    k == 2 && return narrow!(Val(2), m, n, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
    k == 3 && return narrow!(Val(3), m, n, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
    k == 4 && return narrow!(Val(4), m, n, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
    inplace = add && c == out && (m == 1 || ci == ldc) && (n == 1 || cj == 1)
    if !inplace
        for i in 0:(m - 1)
            row = step(out, i * ldc)
            if add
                addend = step(c, i * ci)
                @simd ivdep for j in 0:(n - 1)
                    put!(row, j, at(addend, j * cj))
                end
            else
                @simd ivdep for j in 0:(n - 1)
                    put!(row, j, zero(eltype(out)))
                end
            end
        end
    end
    m * n * k >= BLAS_FROM ? gemm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb) :
        small_mm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb)
    return nothing
end

function outer!(n::Val{N}, m, out, a, sa, b, sb) where {N}
    y = ntuple(j -> at(b, (j - 1) * sb), n)
    sa == 1 ? outer_rows!(n, m, out, a, y, identity) : outer_rows!(n, m, out, a, y, i -> i * sa)
    return nothing
end

@inline function outer_rows!(::Val{N}, m, out, a, y, place::P) where {N, P}
    @simd ivdep for i in 0:(m - 1)
        x = at(a, place(i))
        for j in 1:N
            put!(out, i * N + j - 1, x * y[j])
        end
    end
end

function narrow!(k::Val{K}, m, n, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj) where {K}
    ai, al = ta ? (1, lda) : (lda, 1)
    for i in 0:(m - 1)
        row, x, addend = step(out, i * ldc), step(a, i * ai), step(c, i * ci)
        s = ntuple(l -> at(x, (l - 1) * al), k)
        if !add
            products!(k, n, row, s, b, tb, ldb, (_, _) -> zero(eltype(row)), addend)
        elseif cj == 1
            products!(k, n, row, s, b, tb, ldb, at, addend)
        else
            products!(k, n, row, s, b, tb, ldb, (c, j) -> at(c, j * cj), addend)
        end
    end
    return nothing
end

"""One row of a product of K columns with K rows; strides that are known let loops be vectorised."""
@inline function products!(k::Val{K}, n, row, s, b, tb, ldb, first::F, c) where {K, F}
    if !tb
        sums!(k, n, row, s, j -> step(b, j), l -> l * ldb, first, c)
    elseif ldb == K
        sums!(k, n, row, s, j -> step(b, j * K), identity, first, c)
    else
        sums!(k, n, row, s, j -> step(b, j * ldb), identity, first, c)
    end
end

@inline function sums!(::Val{K}, n, row, s, column::C, place::P, first::F, c) where {K, C, P, F}
    @simd ivdep for j in 0:(n - 1)
        put!(row, j, chain(s, column(j), place, 0, first(c, j)))
    end
end

@inline chain(::Tuple{}, y, place, l, sum) = sum
@inline chain(s::Tuple, y, place, l, sum) =
    chain(Base.tail(s), y, place, l + 1, muladd(s[1], at(y, place(l)), sum))

function small_mm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb)
    ai, al = ta ? (1, lda) : (lda, 1)
    for i in 0:(m - 1)
        row, x = step(out, i * ldc), step(a, i * ai)
        if tb && k >= 8
            for j in 0:(n - 1)
                put!(row, j, at(row, j) + dot_strided(k, x, al, step(b, j * ldb)))
            end
        elseif n == 1 && k >= 8
            columns!(Val(1), k, row, x, al, b, ldb)
        elseif n == 2 && k >= 8
            columns!(Val(2), k, row, x, al, b, ldb)
        elseif n == 3 && k >= 8
            columns!(Val(3), k, row, x, al, b, ldb)
        elseif n == 4 && k >= 8
            columns!(Val(4), k, row, x, al, b, ldb)
        else
            bl, bj = tb ? (1, ldb) : (ldb, 1)
            for l in 0:(k - 1)
                s, y = at(x, l * al), step(b, l * bl)
                axpy_strided!(n, s, row, y, bj)
            end
        end
    end
end

"""A row of few sums, one down each column: four terms at a time, for an addition waits for the one before it."""
@inline function columns!(n::Val{N}, k, row::Ptr{T}, x::Ptr{T}, sx, b::Ptr{T}, ldb) where {N, T}
    zeros = ntuple(_ -> zero(T), n)
    sums, l = (zeros, zeros, zeros, zeros), 0
    while l + 3 < k
        sums = plus_rows(n, sums, step(x, l * sx), sx, step(b, l * ldb), ldb)
        l += 4
    end
    total = map((a, b, c, d) -> (a + b) + (c + d), sums...)
    while l < k
        total = plus_row(n, total, at(x, l * sx), step(b, l * ldb))
        l += 1
    end
    for j in 1:N
        put!(row, j - 1, at(row, j - 1) + total[j])
    end
end

@inline plus_rows(n, sums, x, sx, b, ldb) =
    ntuple(q -> plus_row(n, sums[q], at(x, (q - 1) * sx), step(b, (q - 1) * ldb)), Val(4))
@inline plus_row(n, sums, s, y) = ntuple(j -> muladd(s, at(y, j - 1), sums[j]), n)

@inline function dot_strided(k, x::Ptr{T}, sx, y::Ptr{T}) where {T}
    sum = zero(T)
    if sx == 1
        @simd for l in 0:(k - 1)
            sum = muladd(at(x, l), at(y, l), sum)
        end
    else
        @simd for l in 0:(k - 1)
            sum = muladd(at(x, l * sx), at(y, l), sum)
        end
    end
    return sum
end

@inline function axpy_strided!(n, s, row, y, sy)
    if sy == 1
        @simd ivdep for j in 0:(n - 1)
            put!(row, j, muladd(s, at(y, j), at(row, j)))
        end
    else
        @simd ivdep for j in 0:(n - 1)
            put!(row, j, muladd(s, at(y, j * sy), at(row, j)))
        end
    end
end

for (T, gemm) in ((Float64, BLAS.@blasfunc(dgemm_)), (Float32, BLAS.@blasfunc(sgemm_)))
    @eval function gemm!(m, n, k, out::Ptr{$T}, ldc, a::Ptr{$T}, ta, lda, b::Ptr{$T}, tb, ldb)
        # The same memory, read by columns, holds the transposed matrices: outᵀ += Bᵀ·Aᵀ.
        ccall(
            ($(QuoteNode(gemm)), BLAS.libblastrampoline), Cvoid,
            (Ref{UInt8}, Ref{UInt8}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{$T},
                Ptr{$T}, Ref{BLAS.BlasInt}, Ptr{$T}, Ref{BLAS.BlasInt}, Ref{$T}, Ptr{$T}, Ref{BLAS.BlasInt},
                Clong, Clong),
            tb ? 'T' : 'N', ta ? 'T' : 'N', n, m, k, one($T), b, ldb, a, lda, one($T), out, ldc, 1, 1,
        )
    end
end

# -- reductions and indexed copies ------------------------------------------------------------

@inline function fold!(f::F, finish::G, outer, n, inner, out, oo, oi, a, ao, an, ai) where {F, G}
    for o in 0:(outer - 1), i in 0:(inner - 1)
        x = step(a, o * ao + i * ai)
        total = at(x, 0)
        if an == 1
            @simd for j in 1:(n - 1)
                total = f(total, at(x, j))
            end
        else
            for j in 1:(n - 1)
                total = f(total, at(x, j * an))
            end
        end
        put!(out, o * oo + i * oi, finish(total, n))
    end
end

"""A sum over the first of two dimensions, row by row: the memory is read in its own order."""
function fold_rows!(n, inner, out, a, an)
    inner == 2 && return sum_columns!(Val(2), n, out, a, an)
    inner == 3 && return sum_columns!(Val(3), n, out, a, an)
    inner == 4 && return sum_columns!(Val(4), n, out, a, an)
    for i in 0:(inner - 1)
        put!(out, i, zero(eltype(out)))
    end
    j = 0
    while j + 3 < n
        x, y, z, w = step(a, j * an), step(a, (j + 1) * an), step(a, (j + 2) * an), step(a, (j + 3) * an)
        @simd ivdep for i in 0:(inner - 1)
            put!(out, i, at(out, i) + ((at(x, i) + at(y, i)) + (at(z, i) + at(w, i))))
        end
        j += 4
    end
    while j < n
        row = step(a, j * an)
        @simd ivdep for i in 0:(inner - 1)
            put!(out, i, at(out, i) + at(row, i))
        end
        j += 1
    end
end

"""The sums of few columns, four rows at a time, for an addition waits for the one before it."""
function sum_columns!(n::Val{N}, rows, out::Ptr{T}, a::Ptr{T}, an) where {N, T}
    zeros = ntuple(_ -> zero(T), n)
    sums, i = (zeros, zeros, zeros, zeros), 0
    while i + 3 < rows
        sums = plus_four(n, sums, step(a, i * an), an)
        i += 4
    end
    total = map((a, b, c, d) -> (a + b) + (c + d), sums...)
    while i < rows
        total = plus(n, total, step(a, i * an))
        i += 1
    end
    for j in 1:N
        put!(out, j - 1, total[j])
    end
end

@inline plus_four(n, sums, a, an) = ntuple(q -> plus(n, sums[q], step(a, (q - 1) * an)), Val(4))
@inline plus(n, sum, row) = ntuple(j -> sum[j] + at(row, j - 1), n)

just(total, n) = total
divided(total, n) = total / n

function reduce!(kind, outer, n, inner, out, oo, oi, a, ao, an, ai)
    if kind == 0 && outer == 1 && oi == 1 && ai == 1 && inner > 1
        fold_rows!(n, inner, out, a, an)
    elseif kind == 0
        fold!(+, just, outer, n, inner, out, oo, oi, a, ao, an, ai)
    elseif kind == 1
        fold!(+, divided, outer, n, inner, out, oo, oi, a, ao, an, ai)
    elseif kind == 2
        fold!(high, just, outer, n, inner, out, oo, oi, a, ao, an, ai)
    elseif kind == 3
        fold!(low, just, outer, n, inner, out, oo, oi, a, ao, an, ai)
    else
        fold!(*, just, outer, n, inner, out, oo, oi, a, ao, an, ai)
    end
    return nothing
end

function scan!(outer, n, inner, out, a)
    for o in 0:(outer - 1), i in 0:(inner - 1)
        x, y = step(a, o * n * inner + i), step(out, o * n * inner + i)
        total = at(x, 0)
        put!(y, 0, total)
        for j in 1:(n - 1)
            total += at(x, j * inner)
            put!(y, j * inner, total)
        end
    end
end

function gather!(n, out, a, indices, first)
    for i in 0:(n - 1)
        @inbounds put!(out, i, at(a, indices[first + i + 1]))
    end
end

function scatter_add!(n, out, a, indices, first)
    for i in 0:(n - 1)
        @inbounds j = indices[first + i + 1]
        put!(out, j, at(out, j) + at(a, i))
    end
end
