"""The interface of an operation: two static methods on arrays, forward above backward."""


class Context:
    """Values that an op's forward passes to its backward.

    `needs_grad[i]` is True if input i needs its gradient. For the other inputs, backward may return None.
    """

    __slots__ = ("needs_grad", "saved")

    def __init__(self, needs_grad: tuple[bool, ...]):
        self.needs_grad = needs_grad
        self.saved: tuple = ()

    def save(self, *values) -> None:
        """Save arrays, shapes and hyper-parameters for backward, which reads them from `ctx.saved`."""
        self.saved = values


class Function:
    """An operation: y = forward(inputs), and dL/d(inputs) = backward(dL/dy). Subclass it to add one of your own.

        class Square(minidl.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save(x)
                return x * x

            @staticmethod
            def backward(ctx, grad):
                (x,) = ctx.saved
                return 2 * x * grad

        y = minidl.apply(Square, x)

    Both work on arrays (NumPy's or CuPy's), never on tensors. `forward` takes one array per input tensor and keyword
    hyper-parameters, and returns one array. `backward` takes dL/dy and returns one gradient per input tensor, or None
    for an input that needs none. Neither may write into the arrays it is given. A gradient has its input's dtype; set
    `in_float32 = True` if an operation does not keep bfloat16.
    """

    @staticmethod
    def forward(ctx: Context, *arrays, **hyperparameters):
        """Return y, after `ctx.save(...)` of what backward needs."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Context, grad):
        """Return dL/d(input) for each input array; a single one needs no tuple. `grad` is dL/dy."""
        raise NotImplementedError

    # A captured step on a GPU may defer an array. `apply` reads the attribute `array`, which computes it; only ReLU and
    # Add take what is deferred itself, as their kernels compute it together with their own result.
    reads = "array"
    # If True, `apply` refuses integers, for which NumPy would compute in float64.
    floats_only = False
    # If True, `apply` converts bfloat16 and float16 to float32, and rounds the result. Some of CuPy's functions do not
    # keep bfloat16 (where, clip), and a Python float beside a bfloat16 array makes the result float32 or float64.
    in_float32 = False
    # Numbers of the inputs that stay float32 beside bfloat16 or float16: weights, which would lose small updates.
    kept_in_float32: tuple[int, ...] = ()
