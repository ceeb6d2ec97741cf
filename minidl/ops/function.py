"""The contract of an operation: two static methods on arrays, forward above backward."""


class Context:
    """What passes from an op's forward to its backward.

    `needs_grad[i]` is True if input i needs its gradient. A backward can skip the others.
    """

    __slots__ = ("needs_grad", "saved")

    def __init__(self, needs_grad: tuple[bool, ...]):
        self.needs_grad = needs_grad
        self.saved: tuple = ()

    def save(self, *values) -> None:
        """Keep arrays, shapes and hyper-parameters for backward, which finds them in `saved`."""
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

    Both work on arrays (NumPy's or CuPy's), never on tensors. `forward` takes one array for each tensor, then
    hyper-parameters by keyword, and returns one array. `backward` takes dL/dy and returns one array for each tensor, or
    None for one that needs no gradient. Neither may write into an array it was given.
    """

    @staticmethod
    def forward(ctx: Context, *arrays, **hyperparameters):
        """y, and `ctx.save(...)` of what backward needs."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Context, grad):
        """One dL/d(input) for each input array."""
        raise NotImplementedError

    # Whether whole numbers are refused: NumPy would compute in float64.
    floats_only = False
    # Inputs (0, 1, ...) that stay float32 when input 0 is bfloat16: weights, in which small updates would be lost.
    kept_in_float32: tuple[int, ...] = ()
