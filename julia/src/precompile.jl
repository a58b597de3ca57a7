# What is compiled when the package is installed: loading and running programs, and discrete gradients. All networks are one
# type, so a field of two numbers stands for them all. The solvers are compiled by the first solve of a
# session that uses them: with solves in here, package images crashed Julia when they were loaded (seen
# with a Julia 1.10.8 built from source, in jl_restore_package_image_from_stream).

using PrecompileTools: @compile_workload, @setup_workload

"""z' = p·z, as a lowered field."""
function tiny_field(dtype)
    inputs(lam) = """"inputs": {"z": 2, "t": 1, "p": 2, "lam": $lam}, "work": 0, "constants": [0.0], "indices": []"""
    product(name, a, b, lam) = """{$(inputs(lam)), "outputs": [["$name", 2]], "code": [["binary", "mul", 2, 6, 0, $a, 0, 1, $b, 0, 1]]}"""
    zeros_then(name, n, rest) = """{$(inputs(0)), "outputs": [["$name", $n]], "code": [["unary_nd", "identity", 1, 1, 1, $n, 6, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]$rest]}"""
    diagonal = """, ["unary_nd", "identity", 1, 1, 1, 2, 6, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 1]"""
    both = """{$(inputs(2)), "outputs": [["dz", 2], ["gz", 2], ["gp", 2]], "code": [
        ["binary", "mul", 2, 6, 0, 2, 0, 1, 4, 0, 1], ["binary", "mul", 2, 7, 0, 5, 0, 1, 4, 0, 1], ["binary", "mul", 2, 8, 0, 5, 0, 1, 2, 0, 1]]}"""
    return """{"format": "pynode-lowered-field", "version": 1, "dtype": "$dtype", "rows": 1, "width": 2,
        "autonomous": true, "parameters": [{"name": "p", "shape": [2], "offset": 0}], "programs": {
        "f": $(product("dz", 2, 4, 0)), "vjp_z": $(product("gz", 5, 4, 2)), "vjp_p": $(product("gp", 5, 2, 2)),
        "pullback": $both, "jac": $(zeros_then("jac", 4, diagonal)), "tgrad": $(zeros_then("ft", 2, ""))}}"""
end

@setup_workload begin
    @compile_workload begin
        for (dtype, T) in (("float64", Float64), ("float32", Float32))
            field = parse_field(tiny_field(dtype))
            z, p, J = T[1, 2], T[-1, -0.5], zeros(T, 2, 2)
            out = similar(z)
            rhs!(out, field, z, p, 0.0)
            vjp!(out, field, z, z, p, 0.0)
            vjp_p!(out, field, z, z, p, 0.0)
            tgrad!(out, field, z, p, 0.0)
            jac!(J, field, z, p, 0.0)
            recorder(T)
            heun = method_of_calls("heun", T[0 0 0; 1 0 0; 0.5 0.5 0], T[0.5, 0.5, 0], [0.0, 1, 1], ones(T, 3, 9))
            reads = Reads([0.0, 0.5, 1.0], 2)
            discrete_adjoint(field, heun, [0.0, 1.0], [z, z], p, reads, zeros(T, 2, 3), Counts())
        end
    end
end
