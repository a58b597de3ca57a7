# Loops on raw memory. A program has been checked when it was loaded (check.jl), so nothing is
# checked here. `i` counts from 0; `at(a, i)` reads, `put!(a, i, x)` writes.

@inline at(a::Ptr, i::Int) = unsafe_load(a, i + 1)
@inline put!(a::Ptr{T}, i::Int, x) where {T} = unsafe_store!(a, convert(T, x), i + 1)
@inline step(a::Ptr{T}, n::Int) where {T} = a + n * sizeof(T)

# -- elementwise ------------------------------------------------------------------------------

# How an operand is read along a row: entry by entry, or as one number. Loops that know it are vectorised.
struct EachEntry end
struct OneNumber end

struct Entries{T}
    a::Ptr{T}
end
@inline (r::Entries)(i) = at(r.a, i)

struct Constant{T}
    x::T
end
@inline (r::Constant)(i) = r.x

@inline reader(::EachEntry, a) = Entries(a)
@inline reader(::OneNumber, a) = Constant(at(a, 0))

"""`body!(n, out, readers)` is called with how the operands are read, of which each step, 0 or 1, tells."""
@inline by_steps(body!::F, steps::Tuple, ways...) where {F} =
    steps[1] == 1 ? by_steps(body!, Base.tail(steps), ways..., EachEntry()) : by_steps(body!, Base.tail(steps), ways..., OneNumber())
@inline by_steps(body!::F, ::Tuple{}, ways...) where {F} = body!(ways)

@inline function map_row!(f::F, n, out, readers::Tuple) where {F}
    @simd ivdep for i in 0:(n - 1)
        put!(out, i, f(map(r -> r(i), readers)...))
    end
end

"""out = f(operands...), contiguous; operands of step 0 are one number."""
@inline map_flat!(f::F, n, out, operands, steps) where {F} =
    by_steps(ways -> map_row!(f, n, out, map(reader, ways, operands)), steps)

"""The same over four dimensions with strides."""
@inline function map_nd!(f::F, shape, out, so, operands, strides) where {F}
    steps = map(last, strides)
    if so[4] == 1 && all(s -> 0 <= s <= 1, steps)
        by_steps(steps) do ways
            foreach_row(shape, (out, operands...), (so, strides...)) do row
                map_row!(f, shape[4], row[1], map(reader, ways, Base.tail(row)))
            end
        end
    else
        foreach_row(shape, (out, operands...), (so, strides...)) do row
            for l in 0:(shape[4] - 1)
                put!(row[1], l * so[4], f(map((a, s) -> at(a, l * s), Base.tail(row), steps)...))
            end
        end
    end
end

"""`body(pointers)` for each row, with the addresses of its operands."""
@inline function foreach_row(body::F, shape, pointers::Tuple, strides::Tuple) where {F}
    for i in 0:(shape[1] - 1), j in 0:(shape[2] - 1), k in 0:(shape[3] - 1)
        body(map((a, s) -> step(a, i * s[1] + j * s[2] + k * s[3]), pointers, strides))
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
