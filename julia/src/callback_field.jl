"""
    CallbackField(f, vjp_z, vjp_p)

A field that somebody else evaluates, who is given the addresses of contiguous memory: `f(du, u, p, t)`,
`vjp_z(out, λ, u, p, t)` and `vjp_p(out, λ, u, p, t)`. It has no Jacobian: implicit solvers take one by
finite differences.
"""
struct CallbackField{T} <: AbstractField
    f::Any
    vjp_z::Any
    vjp_p::Any
end

has_jacobian(::CallbackField) = false
Base.copy(::CallbackField) = throw(ArgumentError("a field that is called back runs on one thread only"))

"""Call `f` with the addresses of `out` and `inputs`; what is no plain memory goes by way of a copy."""
function call_out(f, ::Type{T}, out, inputs, t) where {T}
    target, sources = dense(out, T), map(x -> dense(x, T), inputs)
    GC.@preserve target sources f(Int(pointer(target)), map(x -> Int(pointer(x)), sources)..., Float64(t))
    target === out || Base.mightalias(target, out) || copyto!(out, target)
    return nothing
end

rhs!(du, field::CallbackField{T}, u, p, t) where {T} = call_out(field.f, T, du, (u, p), t)
vjp!(out, field::CallbackField{T}, λ, u, p, t) where {T} = call_out(field.vjp_z, T, out, (λ, u, p), t)
vjp_p!(out, field::CallbackField{T}, λ, u, p, t) where {T} = call_out(field.vjp_p, T, out, (λ, u, p), t)
