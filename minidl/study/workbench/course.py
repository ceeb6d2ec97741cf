"""The course: twelve exercises in order, about twenty minutes each, with hints that give away a little at a time."""

from typing import NamedTuple

# What a convolution by one's own im2col has to reach: so many times as fast as the loops; and a network trained on it
# has to recognise this share of new images of four shapes, of which a guess gets a quarter right.
LEAST_SPEEDUP, STATED_ACCURACY = 5, 0.8


class Lesson(NamedTuple):
    """An exercise of the course, and the functions that it has."""

    name: str
    title: str
    functions: tuple[str, ...]
    minutes: int
    hints: tuple[str, ...]
    is_practised: bool = False  # its functions are put to use when they are right: see practice.py


COURSE = (
    Lesson(
        "relu",
        "ReLU, forward and backward",
        ("relu_forward", "relu_backward"),
        10,
        (
            "Forward has one number for each number of x. NumPy has a function for the larger of two.",
            "Where x > 0, y = x, so dy/dx = 1. Where x <= 0, y = 0 whatever x is, so dy/dx = 0.",
            "The chain rule: dL/dx = dL/dy * dy/dx. dy/dx is a mask of zeros and ones, and y tells where it is 1.",
            "y is never negative. So the mask is 0 where y <= 0, and 1 elsewhere, also where y is NaN. A mask y >= 0 "
            "would be 1 everywhere.",
        ),
    ),
    Lesson(
        "linear",
        "A linear layer, forward and backward",
        ("linear_forward", "linear_backward_x", "linear_backward_weight"),
        20,
        (
            "Write down the shapes: x (N, C), weight (C, O), y (N, O). A gradient has the shape of what it is for.",
            "x[n, c] acts on y[n, o] for every o, with the factor weight[c, o]. Sum over these o.",
            "Only one product of grad (N, O) and weight (C, O) has the shape (N, C): grad @ weight.T.",
            "weight[c, o] acts on y[n, o] for every n, with the factor x[n, c]: dL/dweight is x.T @ grad, summed over "
            "the batch. It is a sum, not a mean.",
        ),
    ),
    Lesson(
        "broadcast_sum",
        "The gradient of what was broadcast",
        ("sum_to_shape",),
        20,
        (
            "If a (3, 1) is added to b (3, 4), each number of a is used four times. Each use has a gradient.",
            "Gradients of several uses add up: sum over the axes along which the array was repeated.",
            "There are two kinds of them: axes that were added in front, as (4,) to (3, 4) becomes (1, 4), and axes of "
            "length 1 that were stretched. Find both by comparing the shapes from the right.",
            "Sum with keepdims=True over both kinds, then reshape to `shape`: so the axes of length 1 stay.",
        ),
    ),
    Lesson(
        "cross_entropy",
        "Softmax and cross-entropy, forward and backward",
        ("softmax_forward", "cross_entropy_forward", "cross_entropy_backward"),
        30,
        (
            "exp(800) is infinite. Softmax does not change if the same number is subtracted from a whole row: which "
            "number makes the largest exponent 0?",
            "The loss needs log(softmax). Where softmax is rounded to 0 its logarithm is -infinity, so compute it as "
            "x - max - log(sum of exp(x - max)).",
            "The targets are a row of s/K for each image, with 1 - s more at the label. They add up to 1.",
            "d(-sum of t[k] * log p[k]) / d logits = p - t, because the targets add up to 1.",
            "The loss is a mean over N images, so its gradient is divided by N; and it is multiplied by dL/dloss.",
        ),
    ),
    Lesson(
        "max_pool2d",
        "Max-pooling with ties and padding, forward and backward",
        ("max_pool2d_forward", "max_pool2d_backward"),
        30,
        (
            "Window (i, j) starts at the pixel (i*SH - PH, j*SW - PW). Its pixels outside of the image are left out: "
            "they are not zeros, which would win over negative numbers.",
            "Keep the best value so far and the tap u*KW + v that it came from. Replace both where a pixel is larger "
            "(>): of equal ones the first stays.",
            "`_taps` yields each window's taps in order, without those on the padding.",
            "Backward, the whole dL/dy of a window goes to its best tap. Windows may overlap: add (+=), do not assign.",
        ),
    ),
    Lesson(
        "avg_pool2d",
        "Average pooling, forward and backward",
        ("avg_pool2d_forward", "avg_pool2d_backward"),
        20,
        (
            "y is a sum over the window divided by a count. The count is not always KH*KW: `_pixels` returns it.",
            "Forward is linear in x: y[i, j] is the sum of x[h, w] * 1/count. So each pixel of the window gets "
            "dL/dy * 1/count.",
            "Use the same loop over `_taps` forward and backward, and exchange what is read and what is added to.",
        ),
    ),
    Lesson(
        "conv2d_forward",
        "A convolution, forward, in loops",
        ("conv2d_forward",),
        20,
        (
            "Four loops are enough: over the output pixel (i, j) and the tap (u, v). Batch and channels can be done "
            "with one matrix product.",
            "The tap (u, v) of window (i, j) sees the pixel h = i*SH + u - PH, w = j*SW + v - PW. Skip those outside.",
            "x[:, h, w] is (N, C), weight[u, v] is (C, O): their product is what the tap adds to y[:, i, j].",
            "The bias is added once to each output, not once for each tap. It may be None.",
        ),
    ),
    Lesson(
        "conv2d_backward_weight",
        "A convolution backward: dL/dweight",
        ("conv2d_backward_weight",),
        20,
        (
            "Take one step of the forward loop: y[n, i, j, o] += x[n, h, w, c] * weight[u, v, c, o]. What does "
            "weight[u, v, c, o] act on, and with which factor?",
            "dL/dweight[u, v, c, o] is the sum over n, i, j of x[n, h, w, c] * grad[n, i, j, o].",
            "In the same loop as forward: grad_weight[u, v] += x[:, h, w].T @ grad[:, i, j]. The product of (C, N) and "
            "(N, O) sums over the batch.",
        ),
    ),
    Lesson(
        "conv2d_backward_x",
        "A convolution backward: dL/dx, with stride and padding",
        ("conv2d_backward_x",),
        30,
        (
            "Take one step of the forward loop: y[n, i, j, o] += x[n, h, w, c] * weight[u, v, c, o]. What does "
            "x[n, h, w, c] act on, and with which factor?",
            "Go through the same windows and taps as forward, and add to grad_x[h, w] instead of y[i, j]. Several "
            "windows see the same pixel: +=.",
            "If you write it as a convolution of grad: with stride 1, i = h + PH - u. The index of the kernel runs the "
            "other way, so the kernel is turned by 180 degrees. With a larger stride there are zeros between the "
            "pixels of grad.",
            "grad_x[:, h, w] += grad[:, i, j] @ weight[u, v].T: (N, O) @ (O, C).",
        ),
    ),
    Lesson(
        "batch_norm_backward",
        "Batch normalisation backward: its three terms",
        ("batch_norm_backward",),
        30,
        (
            "Begin with the easy ones: y = weight * x_hat + bias. Both parameters act on all M elements of their "
            "channel: sum over all axes but the last.",
            "x acts on y in three ways: directly, through the mean, through the variance. In evaluation the last two "
            "are constants.",
            "Directly: dL/dx = g * weight / sqrt(variance + eps). Through the mean: each x moves it by 1/M, and all g "
            "of the channel feel it.",
            "Through the variance: d(variance)/dx = 2 (x - mean) / M, and d(1/std)/d(variance) = -1/2 std^-3. What is "
            "left is -x_hat times the mean of g * x_hat.",
            "Together: weight / std * (g - mean of g - x_hat * mean of g * x_hat), the means over the M elements.",
        ),
    ),
    Lesson(
        "residual_end",
        "The end of a residual block: relu(batch_norm(z) + shortcut)",
        ("residual_end_forward", "residual_end_backward"),
        20,
        (
            "Three steps forward: batch-norm, sum, ReLU. Backward they come in the opposite order.",
            "First the ReLU: dL/ds = dL/dy where y > 0, of s = batch_norm(z) + shortcut.",
            "A sum passes its gradient on unchanged to both terms. It is not halved, and nothing is multiplied: "
            "this is why the gradient reaches the first layers.",
            "dL/dshortcut is dL/ds itself; the branch gets the same dL/ds, through `batch_norm_backward`.",
        ),
    ),
    Lesson(
        "im2col",
        "An im2col of your own, a convolution by one matrix product, and a network trained on it",
        ("im2col", "conv2d_forward_by_im2col", "conv2d_backward_by_im2col"),
        40,
        (
            "Each row of the matrix is what one window sees: KH*KW*C numbers. There are N*OH*OW windows.",
            "Loop over the taps (u, v) alone, which are few: one slice of the padded image holds what all windows see "
            "through this tap.",
            "padded[:, u : u + SH*OH : SH, v : v + SW*OW : SW] has the shape (N, OH, OW, C).",
            "Put it into patches (N, OH, OW, KH, KW, C) at [:, :, :, u, v], and reshape at the end. The weight as a "
            "(KH*KW*C, O) matrix has its rows in the same order.",
            "Y = columns @ W is a linear layer: dL/dW = columns.T @ dL/dY and dL/dcolumns = dL/dY @ W.T. `col2im` is "
            "the transpose of im2col, so it turns dL/dcolumns into dL/dx.",
        ),
        is_practised=True,
    ),
)
