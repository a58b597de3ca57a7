# Matrix products on raw memory: loops of our own where a matrix is small or narrow, else BLAS.

const BLAS_FROM = 4096  # multiplications, from which a call of BLAS costs less than the loops below

"""out = A·B (+ addend), see docs/program-format.md."""
@inline function mm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
    if m == 1 && n * k < BLAS_FROM && (!add || cj == 1)
        row!(n, k, out, a, ta ? lda : 1, b, tb, ldb, add, c) && return nothing
    end
    return rows!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
end

"""
A single row, where there are loops for its shape; says whether there are. All of it is inlined: to hand on 16
arguments takes longer than the 50 sums of a small layer.
"""
@inline function row!(n, k, out, x, sx, b, tb, ldb, add, c)
    if k == 2 && (ldb == 2 || !tb)
        few_rows!(Val(2), n, out, x, sx, b, tb, ldb, add, c)
    elseif k == 3 && (ldb == 3 || !tb)
        few_rows!(Val(3), n, out, x, sx, b, tb, ldb, add, c)
    elseif tb && k >= 8
        dots!(n, k, out, x, sx, b, ldb, add, c)
    elseif !tb && k >= 8 && n == 2
        add ? columns!(Val(2), k, out, at, c, x, sx, b, ldb) : columns!(Val(2), k, out, nothing_yet, c, x, sx, b, ldb)
    elseif !tb && k >= 8 && n == 3
        add ? columns!(Val(3), k, out, at, c, x, sx, b, ldb) : columns!(Val(3), k, out, nothing_yet, c, x, sx, b, ldb)
    else
        return false
    end
    return true
end

"""A row of sums of K terms each."""
@inline function few_rows!(k::Val{K}, n, out, x, sx, b, tb, ldb, add, c) where {K}
    s = (ntuple(l -> at(x, (l - 1) * sx), k),)
    add ? products!(k, n, (out,), s, b, tb, ldb, at, c) : products!(k, n, (out,), s, b, tb, ldb, nothing_yet, c)
end

nothing_yet(c, _) = zero(eltype(c))

function rows!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj)
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
    from_blas = m * n * k >= BLAS_FROM
    inplace = add && c == out && (m == 1 || ci == ldc) && (n == 1 || cj == 1)
    inplace || from_blas && !add || start!(m, n, out, ldc, add, c, ci, cj)
    from_blas ? gemm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb, add) :
        small_mm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb)
    return nothing
end

"""What a product is added to: the addend, or zero."""
function start!(m, n, out, ldc, add, c, ci, cj)
    if add && ci == 0 && cj == 1 && ldc == n  # a bias for few columns
        n == 2 && return repeat!(Val(2), m, out, c)
        n == 3 && return repeat!(Val(3), m, out, c)
        n == 4 && return repeat!(Val(4), m, out, c)
    end
    for i in 0:(m - 1)
        row, addend = step(out, i * ldc), step(c, i * ci)
        if !add
            @simd ivdep for j in 0:(n - 1)
                put!(row, j, zero(eltype(out)))
            end
        elseif cj == 1
            @simd ivdep for j in 0:(n - 1)
                put!(row, j, at(addend, j))
            end
        elseif cj == 0
            x = at(addend, 0)
            @simd ivdep for j in 0:(n - 1)
                put!(row, j, x)
            end
        else
            @simd ivdep for j in 0:(n - 1)
                put!(row, j, at(addend, j * cj))
            end
        end
    end
    return nothing
end

function repeat!(n::Val{N}, m, out, c) where {N}
    y = ntuple(j -> at(c, j - 1), n)
    @simd ivdep for i in 0:(m - 1)
        for j in 1:N
            put!(out, i * N + j - 1, y[j])
        end
    end
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

"""Of K columns by K rows: four rows at a time, for which what is read of B is read once."""
function narrow!(k::Val{K}, m, n, out, ldc, a, ta, lda, b, tb, ldb, add, c, ci, cj) where {K}
    ai, al = ta ? (1, lda) : (lda, 1)
    most = m - m % 4
    for i in 0:4:(most - 1)
        narrow_rows!(Val(4), i, k, n, out, ldc, a, ai, al, b, tb, ldb, add, c, ci, cj)
    end
    for i in most:(m - 1)
        narrow_rows!(Val(1), i, k, n, out, ldc, a, ai, al, b, tb, ldb, add, c, ci, cj)
    end
    return nothing
end

@inline function narrow_rows!(r::Val{R}, i, k::Val{K}, n, out, ldc, a, ai, al, b, tb, ldb, add, c, ci, cj) where {R, K}
    rows = ntuple(q -> step(out, (i + q - 1) * ldc), r)
    addends = ntuple(q -> step(c, (i + q - 1) * ci), r)
    s = ntuple(q -> ntuple(l -> at(a, (i + q - 1) * ai + (l - 1) * al), k), r)
    if !add
        products!(k, n, rows, s, b, tb, ldb, nothing_yet, c)
    elseif ci == 0 && cj == 1
        products!(k, n, rows, s, b, tb, ldb, at, c)
    elseif cj == 1
        products!(k, n, rows, s, b, tb, ldb, at, addends)
    else
        products!(k, n, rows, s, b, tb, ldb, (c, j) -> at(c, j * cj), addends)
    end
end

"""Rows of a product of K columns with K rows; strides that are known let loops be vectorised."""
@inline function products!(k::Val{K}, n, rows, s, b, tb, ldb, first::F, addends) where {K, F}
    if !tb
        sums!(k, n, rows, s, j -> step(b, j), l -> l * ldb, first, addends)
    elseif ldb == K
        sums!(k, n, rows, s, j -> step(b, j * K), identity, first, addends)
    else
        sums!(k, n, rows, s, j -> step(b, j * ldb), identity, first, addends)
    end
end

@inline function sums!(k::Val, n, rows, s, column::C, place::P, first::F, addend::Ptr) where {C, P, F}
    @simd ivdep for j in 0:(n - 1)
        from, start = column(j), first(addend, j)
        y = ntuple(l -> at(from, place(l - 1)), k)
        put_rows((row, s, _) -> put!(row, j, chain(s, y, start)), rows, s, rows)
    end
end

@inline function sums!(k::Val, n, rows, s, column::C, place::P, first::F, addends::Tuple) where {C, P, F}
    @simd ivdep for j in 0:(n - 1)
        from = column(j)
        y = ntuple(l -> at(from, place(l - 1)), k)
        put_rows((row, s, c) -> put!(row, j, chain(s, y, first(c, j))), rows, s, addends)
    end
end

@inline put_rows(f, ::Tuple{}, ::Tuple{}, ::Tuple{}) = nothing
@inline put_rows(f::F, a::Tuple, b::Tuple, c::Tuple) where {F} =
    (f(a[1], b[1], c[1]); put_rows(f, Base.tail(a), Base.tail(b), Base.tail(c)))

@inline chain(::Tuple{}, ::Tuple{}, sum) = sum
@inline chain(s::Tuple, y::Tuple, sum) = chain(Base.tail(s), Base.tail(y), muladd(s[1], y[1], sum))

"""A row of sums, each along a row of B."""
@inline function dots!(n, k, out, x, sx, b, ldb, add, c)
    for j in 0:(n - 1)
        sum = dot_strided(k, x, sx, step(b, j * ldb))
        put!(out, j, add ? at(c, j) + sum : sum)
    end
end

function small_mm!(m, n, k, out, ldc, a, ta, lda, b, tb, ldb)
    ai, al = ta ? (1, lda) : (lda, 1)
    for i in 0:(m - 1)
        row, x = step(out, i * ldc), step(a, i * ai)
        if tb && k >= 8
            for j in 0:(n - 1)
                put!(row, j, at(row, j) + dot_strided(k, x, al, step(b, j * ldb)))
            end
        elseif n == 1 && k >= 8
            columns!(Val(1), k, row, at, row, x, al, b, ldb)
        elseif n == 2 && k >= 8
            columns!(Val(2), k, row, at, row, x, al, b, ldb)
        elseif n == 3 && k >= 8
            columns!(Val(3), k, row, at, row, x, al, b, ldb)
        elseif n == 4 && k >= 8
            columns!(Val(4), k, row, at, row, x, al, b, ldb)
        else
            bl, bj = tb ? (1, ldb) : (ldb, 1)
            for l in 0:(k - 1)
                s, y = at(x, l * al), step(b, l * bl)
                axpy_strided!(n, s, row, y, bj)
            end
        end
    end
end

"""A row of few sums, one down each column, each added to `first(c, j)`."""
@inline function columns!(n::Val{N}, k, row, first::F, c, x, sx, b, ldb) where {N, F}
    sums = N < 4 && sx == 1 && ldb == N ? adjacent_sums(n, k, x, b) : column_sums(n, k, x, sx, b, ldb)
    for j in 1:N
        put!(row, j - 1, first(c, j - 1) + sums[j])
    end
end

# Sums of names of their own are vectorised, those in a tuple are not.
@inline adjacent_sums(::Val{1}, k, x, b) = (dot_strided(k, x, 1, b),)

@inline function adjacent_sums(::Val{2}, k, x::Ptr{T}, b) where {T}
    s, r = zero(T), zero(T)
    @simd for l in 0:(k - 1)
        s, r = muladd(at(x, l), at(b, 2l), s), muladd(at(x, l), at(b, 2l + 1), r)
    end
    return s, r
end

@inline function adjacent_sums(::Val{3}, k, x::Ptr{T}, b) where {T}
    s, r, q = zero(T), zero(T), zero(T)
    @simd for l in 0:(k - 1)
        s, r, q = muladd(at(x, l), at(b, 3l), s), muladd(at(x, l), at(b, 3l + 1), r), muladd(at(x, l), at(b, 3l + 2), q)
    end
    return s, r, q
end

"""Four terms at a time, for an addition waits for the one before it."""
@inline function column_sums(n::Val, k, x::Ptr{T}, sx, b::Ptr{T}, ldb) where {T}
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
    return total
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
    @eval function gemm!(m, n, k, out::Ptr{$T}, ldc, a::Ptr{$T}, ta, lda, b::Ptr{$T}, tb, ldb, add)
        # The same memory, read by columns, holds the transposed matrices: outᵀ (+)= Bᵀ·Aᵀ.
        ccall(
            ($(QuoteNode(gemm)), BLAS.libblastrampoline), Cvoid,
            (Ref{UInt8}, Ref{UInt8}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{$T},
                Ptr{$T}, Ref{BLAS.BlasInt}, Ptr{$T}, Ref{BLAS.BlasInt}, Ref{$T}, Ptr{$T}, Ref{BLAS.BlasInt},
                Clong, Clong),
            tb ? 'T' : 'N', ta ? 'T' : 'N', n, m, k, one($T), b, ldb, a, lda, $T(add), out, ldc, 1, 1,
        )
    end
end
