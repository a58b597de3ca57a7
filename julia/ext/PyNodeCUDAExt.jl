"""NVIDIA GPUs for ensembles."""
module PyNodeCUDAExt

using CUDA: CUDABackend
using PyNode: PyNode

PyNode.ensemble_backend(::Val{:cuda}) = CUDABackend()

end
