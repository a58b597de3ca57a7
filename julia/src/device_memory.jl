# The caller's memory on a device; part of the module Memory.

array(field::DeviceField, ::Type{T}, address::Integer, dims...) where {T} = PyNode.wrap_device(field.f.backend, T, address, dims)

function gathered(field::DeviceField, ::Type{T}, i) where {T}
    places = pieces(i)
    p, at = similar(field.none, T, sum(view(places, 2, :); init = 0)), 1
    for (address, n) in eachcol(places)
        n == 0 || copyto!(p, at, array(field, T, address, n), 1, n)
        at += n
    end
    return p
end

function scatter!(field::DeviceField, i, p::AbstractVector{T}) where {T}
    at = 1
    for (address, n) in eachcol(pieces(i))
        n == 0 || copyto!(array(field, T, address, n), 1, p, at, n)
        at += n
    end
end

solve_each(::Type{T}, ::DeviceField, solver, i, x) where {T} =
    throw(ArgumentError("on a device all samples are solved together: steps of each sample's own are for the CPU"))
