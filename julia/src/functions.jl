# The functions behind the kinds of instructions, by the numbers of docs/program-format.md. Outside
# its domain a function gives NaN, as in torch, where Base would throw.

using SpecialFunctions: erf

@inline nan_unless(f::F, inside, x::T) where {F, T} = inside ? f(x) : T(NaN)

safe_sqrt(x) = nan_unless(sqrt, x >= 0, x)
safe_rsqrt(x) = inv(safe_sqrt(x))
safe_log(x) = nan_unless(log, x >= 0, x)
safe_log2(x) = nan_unless(log2, x >= 0, x)
safe_log10(x) = nan_unless(log10, x >= 0, x)
safe_log1p(x) = nan_unless(log1p, x >= -1, x)
safe_sin(x) = nan_unless(sin, isfinite(x), x)
safe_cos(x) = nan_unless(cos, isfinite(x), x)
safe_tan(x) = nan_unless(tan, isfinite(x), x)
safe_asin(x) = nan_unless(asin, abs(x) <= 1, x)
safe_acos(x) = nan_unless(acos, abs(x) <= 1, x)
safe_acosh(x) = nan_unless(acosh, x >= 1, x)
safe_atanh(x) = nan_unless(atanh, abs(x) <= 1, x)
safe_pow(a::T, b::T) where {T} = a < 0 && isfinite(b) && !isinteger(b) ? T(NaN) : a^b

truth(x::Bool, ::Type{T}) where {T} = T(x)
is(x) = x != 0

gauss_cdf(x::T) where {T} = T(0.5) * (1 + erf(x * T(0.7071067811865476)))
gauss_pdf(x::T) where {T} = T(0.3989422804014327) * fast_exp(-T(0.5) * x * x)
gelu(x) = x * gauss_cdf(x)
gelu_inner(x::T) where {T} = T(0.7978845608028654) * muladd(T(0.044715) * x * x, x, x)
gelu_tanh(x::T) where {T} = T(0.5) * x * (1 + fast_tanh(gelu_inner(x)))
softplus(x::T) where {T} = x > 20 ? x : log1p(fast_exp(x))

function gelu_tanh_grad(a::T, b::T) where {T}
    h = fast_tanh(gelu_inner(b))
    slope = T(0.7978845608028654) * muladd(T(3 * 0.044715), b * b, one(T))
    return a * T(0.5) * ((1 + h) + b * (1 - h * h) * slope)
end

function silu_grad(a, b)
    s = fast_sigmoid(b)
    return a * s * muladd(b, 1 - s, one(b))
end

low(a, b) = isnan(a) ? a : (isnan(b) ? b : ifelse(b < a, b, a))
high(a, b) = isnan(a) ? a : (isnan(b) ? b : ifelse(b > a, b, a))
clamped(a, b, c) = isnan(a) ? a : low(high(a, b), c)
remainder(a, b) = (r = rem(a, b); r != 0 && (r < 0) != (b < 0) ? r + b : r)
safe_rem(a::T, b::T) where {T} = isfinite(a) ? rem(a, b) : T(NaN)

const UNARY = (
    identity, -, abs, sign, inv, safe_sqrt, safe_rsqrt, fast_exp, exp2, expm1, safe_log, safe_log2,
    safe_log10, safe_log1p, safe_sin, safe_cos, safe_tan, safe_asin, safe_acos, atan, sinh, cosh, asinh,
    safe_acosh, safe_atanh, fast_tanh, fast_sigmoid, x -> ifelse(x < 0, zero(x), x),
    x -> x * fast_sigmoid(x), gelu, gelu_tanh, softplus, erf, floor, ceil, round, trunc,
    x -> truth(!is(x), typeof(x)), x -> truth(isnan(x), typeof(x)), x -> x * x,
)
const UNARY_NAMES = split(
    "identity neg abs sign reciprocal sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin " *
    "acos atan sinh cosh asinh acosh atanh tanh sigmoid relu silu gelu gelu_tanh softplus erf floor " *
    "ceil round trunc not isnan square",
)

const BINARY = (
    +, -, *, /, safe_pow, low, high,
    (a, b) -> truth(a < b, typeof(a)), (a, b) -> truth(a <= b, typeof(a)),
    (a, b) -> truth(a > b, typeof(a)), (a, b) -> truth(a >= b, typeof(a)),
    (a, b) -> truth(a == b, typeof(a)), (a, b) -> truth(a != b, typeof(a)),
    (a, b) -> truth(is(a) & is(b), typeof(a)), (a, b) -> truth(is(a) | is(b), typeof(a)),
    (a, b) -> truth(is(a) ⊻ is(b), typeof(a)), (a, b) -> atan(a, b), safe_rem,
    (a, b) -> isfinite(a) ? remainder(a, b) : oftype(a, NaN),
    (a, b) -> a * (1 - b * b), (a, b) -> a * b * (1 - b), (a, b) -> ifelse(b > 0, a, zero(a)), silu_grad,
    (a, b) -> a * muladd(b, gauss_pdf(b), gauss_cdf(b)), gelu_tanh_grad,
    (a, b) -> b > 20 ? a : a * fast_sigmoid(b), (a, b) -> ifelse(a > 0, a, b * a),
    (a, b) -> ifelse(a > 0, a, b * fast_expm1_negative(ifelse(a > 0, zero(a), a))),
)
const BINARY_NAMES = split(
    "add sub mul div pow minimum maximum lt le gt ge eq ne and or xor atan2 fmod remainder tanh_grad " *
    "sigmoid_grad relu_grad silu_grad gelu_grad gelu_tanh_grad softplus_grad leaky_relu elu",
)

const TERNARY = (
    (a, b, c) -> ifelse(is(a), b, c), muladd, clamped, (a, b, c) -> ifelse(b > 0, a, c * a),
    (a, b, c) -> ifelse(b > 0, a, a * c * fast_exp(ifelse(b > 0, zero(b), b))),
)
const TERNARY_NAMES = split("where fma clamp leaky_relu_grad elu_grad")

const REDUCE_NAMES = split("sum mean amax amin prod")
