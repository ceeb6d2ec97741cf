"""Where the windows of pooling and convolution lie: CUDA source for the kernels that gather from them."""

FIRST_WINDOW = """
// The first window that covers a position on an axis: window i covers those from i*stride - padding on.
__device__ index first_window(index position, index kernel_size, index stride, index padding) {
    index behind_window_0 = position + padding - kernel_size;
    return behind_window_0 < 0 ? 0 : behind_window_0 / stride + 1;
}
"""
