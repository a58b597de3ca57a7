"""compile=True on CUDA: attempted steps, control included, as CUDA graphs of fused kernels."""
