# What is compiled when the package is installed, so that the first solve of a new network compiles
# nothing: all networks are one type, so a field of two numbers stands for them all.

using PrecompileTools: @compile_workload, @setup_workload

"""z' = p·z, as a lowered field."""
function tiny_field(dtype)
    inputs(lam) = """"inputs": {"z": 2, "t": 1, "p": 2, "lam": $lam}, "work": 0, "constants": [0.0], "indices": []"""
    product(name, a, b, lam) = """{$(inputs(lam)), "outputs": [["$name", 2]], "code": [["binary", "mul", 2, 6, 0, $a, 0, 1, $b, 0, 1]]}"""
    zeros_then(name, n, rest) = """{$(inputs(0)), "outputs": [["$name", $n]], "code": [["unary_nd", "identity", 1, 1, 1, $n, 6, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]$rest]}"""
    diagonal = """, ["unary_nd", "identity", 1, 1, 1, 2, 6, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 1]"""
    return """{"format": "pynode-lowered-field", "version": 1, "dtype": "$dtype", "rows": 1, "width": 2,
        "autonomous": true, "parameters": [{"name": "p", "shape": [2], "offset": 0}], "programs": {
        "f": $(product("dz", 2, 4, 0)), "vjp_z": $(product("gz", 5, 4, 2)), "vjp_p": $(product("gp", 5, 2, 2)),
        "jac": $(zeros_then("jac", 4, diagonal)), "tgrad": $(zeros_then("ft", 2, ""))}}"""
end

function precompile_memory(dtype, u0::Vector{T}, p, ts) where {T}
    id = Memory.open_program(tiny_field(dtype))
    ints, floats = zeros(Int64, Memory.INTS), fill(NaN, Memory.FLOATS)
    zs, seeds, gz, gp = zeros(T, 2, 3), ones(T, 2, 3), zeros(T, 2), zeros(T, 2)
    GC.@preserve u0 p ts zs seeds gz gp ints floats begin
        address(x) = Int(pointer(x))
        ints[1:10] = [2, 2, 3, address(u0), address(p), address(ts), address(zs), T == Float32, -1, 1000]
        ints[Memory.STOPS_AT], ints[Memory.KEEP] = address(floats), 1
        ints[[Memory.COTANGENTS, Memory.GRAD_Z0, Memory.GRAD_P]] = [address(seeds), address(gz), address(gp)]
        floats[1:2] .= 1.0e-3
        for each in (0, 1)
            ints[Memory.SAMPLES] = each
            _, solve, _ = Memory.solve!(id, "tsit5", address(ints), address(floats))
            Memory.gradient!(solve, "gauss", nothing, address(ints), address(floats))
            Memory.evaluate!(solve, 1, address(ts), address(gz))
            Memory.close_solve(solve)
        end
    end
    Memory.close_field(id)
end

# The solvers that people use most; the first solve by another compiles it, in seconds to a minute.
const USUAL = (
    (Float64, "tsit5", ("gauss", "interpolating")),
    (Float64, "dp5", ("gauss",)),
    (Float64, "vern7", ("gauss",)),
    (Float64, "rodas5p", ("gauss",)),
    (Float64, "fbdf", ("gauss",)),
    (Float32, "tsit5", ("gauss", "interpolating")),
)

@setup_workload begin
    @compile_workload begin
        for (T, solver, ways) in USUAL
            dtype = T == Float64 ? "float64" : "float32"
            field = parse_field(tiny_field(dtype))
            u0, p, ts = T[1, 2], T[-1, -0.5], [0.0, 0.1, 0.2]
            options = (; solver, rtol = 1.0e-3, atol = 1.0e-4)
            forward(field, u0, p, ts; options..., keep = false)
            found = forward(field, u0, p, ts; options...)
            for sensitivity in ways
                gradient(found, found.zs; sensitivity, rtol = 1.0e-3, atol = 1.0e-4)
            end
            solver == "tsit5" && precompile_memory(dtype, u0, p, ts)
        end
    end
end
