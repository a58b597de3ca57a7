"""NVIDIA GPUs: ensembles in one kernel, and fields whose memory lies on the GPU."""
module PyNodeCUDAExt

using CUDA: CUDA, CUDABackend, CuArray, CuPtr, DeviceMemory
using PyNode: PyNode

PyNode.ensemble_backend(::Val{:cuda}) = CUDABackend()

function PyNode.device_backend(::Val{:cuda}, ordinal)
    CUDA.functional() || throw(ArgumentError("CUDA.jl finds no GPU that it can use: in Julia, CUDA.functional(true) says why"))
    ordinal < CUDA.ndevices() || throw(ArgumentError("there is no cuda:$ordinal; there are $(CUDA.ndevices()) GPUs"))
    CUDA.device!(ordinal)
    return CUDABackend()
end

PyNode.enter_device(x::CuArray) = (CUDA.device!(CUDA.device(x)); nothing)

# Memory that is the caller's own.
PyNode.wrap_device(::CUDABackend, ::Type{T}, address, dims::NTuple{N, Int}) where {T, N} =
    unsafe_wrap(CuArray{T, N, DeviceMemory}, CuPtr{T}(address % UInt), dims)

# -- matrix products ------------------------------------------------------------------------------

const BLAS = isdefined(CUDA, :cuBLAS) ? CUDA.cuBLAS : CUDA.CUBLAS  # its name changed with CUDA.jl 6

PyNode.has_gemm(::CUDABackend) = true

for (T, gemm, batched) in (
        (Float64, :cublasDgemm_v2, :cublasDgemmStridedBatched), (Float32, :cublasSgemm_v2, :cublasSgemmStridedBatched),
    )
    @eval function PyNode.gemm_on!(
            ::CUDABackend, units, batch, (m, n, k), out::CuArray{$T}, o, os, ldc, a::CuArray{$T}, p, as, ta, lda, b::CuArray{$T}, q, bs,
            tb, ldb, add,
        )
        # The same memory, read by columns, holds the transposed matrices: outᵀ = Bᵀ·Aᵀ.
        GC.@preserve units out a b begin
            C, A, B = at(out, o), at(a, p), at(b, q)
            first, second = tb ? 'T' : 'N', ta ? 'T' : 'N'
            one, β = at(units, 1), at(units, add ? 1 : 0)
            if batch == 1
                BLAS.$gemm(BLAS.handle(), first, second, n, m, k, one, B, ldb, A, lda, β, C, ldc)
            else
                BLAS.$batched(
                    BLAS.handle(), first, second, n, m, k, one, B, ldb, bs, A, lda, as, β, C, ldc, os, batch)
            end
        end
        return nothing
    end
end

at(x::CuArray{T}, offset) where {T} = pointer(x) + offset * sizeof(T)

end
