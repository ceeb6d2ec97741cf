"""CUDA source for kernels that gather from windows: the position of a window."""

FIRST_WINDOW = """
// The first window i that covers pixel h along an axis: window i covers the pixels i*SH - PH .. i*SH - PH + KH - 1.
__device__ index first_window(index h, index KH, index SH, index PH) {
    index behind_window_0 = h + PH - KH;
    return behind_window_0 < 0 ? 0 : behind_window_0 / SH + 1;
}
"""
