# exp and its kin in forms that a compiler can vectorise: no branches, no tables. Base's own are as
# accurate but scalar, and a network's field is little else than tanh. Within 3 units in the last
# place of the true value; NaN stays NaN. Method: x = k·ln 2 + r with |r| ≤ ln 2 / 2, then a
# polynomial for expm1(r), and 2^k put together from its bits.

"""Constants of one number type: of the reduction, of the bits, and the polynomial after its first term."""
struct ExpTable{T, I, N}
    shifter::T       # 1.5·2^(bits of the fraction): adding it rounds to an integer
    ln2_high::T
    ln2_low::T
    bits::Int        # of the fraction
    one::I           # the bits of 1.0
    series::NTuple{N, T}
    tanh_end::T      # 2|x| from which tanh is ±1
    exp_end::T       # |x| beyond which exp is ∞ or 0
end

"""
Coefficients of the polynomial that is (expm1(r) − r)/r² at n Chebyshev points of |r| ≤ ln 2 / 2: with two terms
fewer as accurate as the Taylor polynomial.
"""
function series(T, n)
    points = [log(big(2)) / 2 * cospi((2i - 1) / big(2n)) for i in 1:n]
    value(r) = abs(r) < 1.0e-30 ? big(0.5) : (expm1(r) - r) / r^2
    found = [r^j for r in points, j in 0:(n - 1)] \ value.(points)
    return ntuple(i -> T(found[i]), n)
end

const TABLE64 = ExpTable{Float64, Int64, 10}(
    0x1.8p52, 0x1.62e42fefa0000p-1, 0x1.cf79abc9e3b3ap-40, 52, reinterpret(Int64, 1.0),
    series(Float64, 10), 44.0, 750.0,
)
const TABLE32 = ExpTable{Float32, Int32, 5}(
    0x1.8p23, 0.693359375f0, -2.12194440f-4, 23, reinterpret(Int32, 1.0f0),
    series(Float32, 5), 20.0f0, 105.0f0,
)

@inline table(::Type{Float64}) = TABLE64
@inline table(::Type{Float32}) = TABLE32

"""k of x = k·ln 2 + r, as a number, for |x| up to `exp_end`."""
@inline nearest(x::T) where {T} = muladd(x, T(1.4426950408889634), table(T).shifter) - table(T).shifter

"""expm1(r) for |r| ≤ ln 2 / 2."""
@inline expm1_small(r::T) where {T} = muladd(r * r, evalpoly(r, table(T).series), r)

"""2^k for a whole number k whose power is normal."""
@inline function power_of_two(k::T) where {T}
    c = table(T)
    bits = reinterpret(typeof(c.one), k + c.shifter)
    return reinterpret(T, (bits << c.bits) + c.one)
end

@inline keep(x, low, high) = ifelse(x < low, low, ifelse(x > high, high, x))  # NaN passes

@inline function fast_exp(x::T) where {T}
    c = table(T)
    inside = keep(x, -c.exp_end, c.exp_end)
    k = nearest(inside)
    p = expm1_small(muladd(-k, c.ln2_low, muladd(-k, c.ln2_high, inside)))
    half = muladd(k, T(0.5), c.shifter) - c.shifter  # 2^k in two factors reaches the edges of the range
    return (1 + p) * power_of_two(half) * power_of_two(k - half)
end

"""expm1 for x in [0, tanh_end], for functions in which its error fades as k, and ln 2's rounding with it, grows."""
@inline function expm1_inside(x::T) where {T}
    k = nearest(x)
    p = expm1_small(muladd(-k, T(0.6931471805599453), x))
    s = power_of_two(k)
    return muladd(s, p, s - 1)
end

@inline function fast_tanh(x::T) where {T}
    y = expm1_inside(keep(2 * abs(x), zero(T), table(T).tanh_end))
    return copysign(y / (y + 2), x)
end

@inline fast_sigmoid(x) = 1 / (1 + fast_exp(-x))

"""expm1 for x ≤ 0, as elu needs it."""
@inline function fast_expm1_negative(x::T) where {T}
    y = expm1_inside(keep(-x, zero(T), table(T).tanh_end))
    return -y / (y + 1)
end
