"""The engine in ten steps, from one number to a training step: each prints what it computes and asserts what it says.

    python examples/tour.py          # all ten steps; seconds on a CPU
    python examples/tour.py 3 4      # only steps 3 and 4

Read it from the top, beside `minidl/autograd.py` and `minidl/ops`. Most steps compute gradients twice, by hand from the
formula and by `backward()`, and compare them. Change a number and see which assertion fails.

L is the loss, a scalar. The gradient of x is dL/dx, an array of x's shape; `grad` is dL/dy, the gradient of an output.
Images are (N, H, W, C), convolution weights (KH, KW, C, O).
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
from models.resnet import BasicBlock

import minidl
from minidl import Function, Tensor, nn, optim
from minidl.data import make_shapes, normalize
from minidl.functional import batch_norm, conv2d, cross_entropy, global_avg_pool, linear, max_pool2d, relu


def leaf(values) -> Tensor:
    """A float64 tensor that keeps its gradient: a leaf of the graph."""
    return Tensor(np.asarray(values, np.float64), requires_grad=True)


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """A leaf of random numbers, normally distributed."""
    return leaf(rng.standard_normal(shape))


def assert_equal(actual, expected, rtol: float = 1e-12) -> None:
    """Raise AssertionError unless the two agree up to rounding in float64, relative to the largest number."""
    actual, expected = (x.numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


def step_1_a_chain_of_scalars() -> None:
    """The chain rule, once along a chain and once where a number is used twice."""
    a, b, c = leaf(2.0), leaf(3.0), leaf(-1.0)
    u = a * b  # 6
    v = u + c  # 5
    loss = v * v + a  # 27: a acts through u, and directly
    loss.backward()

    grad_v = 2 * 5.0  # dL/dv, as L = v^2 + a
    grad_u = grad_c = grad_v  # a sum passes its gradient on to both terms
    grad_a = 3.0 * grad_u + 1.0  # a product multiplies it by the other factor; a is used twice, so two parts are added
    grad_b = 2.0 * grad_u
    for name, tensor, by_hand in (("a", a, grad_a), ("b", b, grad_b), ("c", c, grad_c)):
        print(f"dL/d{name} = {tensor.grad.item()}")
        assert tensor.grad.item() == by_hand


def step_2_broadcasting() -> None:
    """A bias is added to every row, so its gradient is the sum over the rows."""
    x = leaf([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (2, 3)
    bias = leaf([0.1, 0.2, 0.3])  # (3,), repeated along the first axis
    weights = Tensor(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))  # make dL/dy differ in every element
    ((x + bias) * weights).sum().backward()

    grad = weights.numpy()  # dL/dy of y = x + bias, (2, 3)
    print(f"dL/dbias = {bias.grad.numpy()}, the sum of the rows of dL/dy")
    assert_equal(x.grad, grad)
    assert_equal(bias.grad, grad.sum(axis=0))  # (2, 3) -> (3,): the adjoint of repeating is summing


def patches_of(x: np.ndarray, kernel: int, padding: int) -> np.ndarray:
    """im2col for stride 1: the patch that each window sees as a row, (N, H, W, C) -> (N, OH, OW, KH*KW*C)."""
    n, height, width, channels = x.shape
    oh, ow = height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    patches = np.empty((n, oh, ow, kernel, kernel, channels))
    for u, v in np.ndindex(kernel, kernel):
        patches[:, :, :, u, v] = padded[:, u : u + oh, v : v + ow]  # the pixel that each window sees at tap (u, v)
    return patches.reshape(n, oh, ow, -1)


def step_3_a_convolution_is_a_matrix_product() -> None:
    """im2col by hand, and the operation: the same numbers."""
    rng = np.random.default_rng(3)
    x, weight = normal(rng, 2, 5, 5, 3), normal(rng, 3, 3, 3, 4)
    columns = patches_of(x.numpy(), kernel=3, padding=1)  # (2, 5, 5, 27)
    by_hand = columns @ weight.numpy().reshape(27, 4)  # (2, 5, 5, 27) @ (27, 4) -> (2, 5, 5, 4)
    y = conv2d(x, weight, padding=1)
    print(f"x {x.shape}, columns {columns.shape}, weight (27, 4), y {y.shape}")
    assert_equal(y, by_hand)


def step_4_its_gradient_is_another_convolution() -> None:
    """dL/dx convolves dL/dy with the kernel turned by 180 degrees; dL/dweight is columns^T dL/dy."""
    rng = np.random.default_rng(4)
    x, weight, grad = normal(rng, 2, 5, 5, 3), normal(rng, 3, 3, 3, 4), rng.standard_normal((2, 5, 5, 4))
    conv2d(x, weight, padding=1).backward(Tensor(grad))

    turned = weight.numpy()[::-1, ::-1].transpose(0, 1, 3, 2)  # (KH, KW, C, O) -> (KH, KW, O, C)
    grad_x = patches_of(grad, kernel=3, padding=1) @ turned.reshape(36, 3)  # padding KH - 1 - PH = 1
    columns = patches_of(x.numpy(), kernel=3, padding=1).reshape(-1, 27)  # (N*OH*OW, KH*KW*C)
    grad_weight = (columns.T @ grad.reshape(-1, 4)).reshape(3, 3, 3, 4)
    print(f"dL/dx {grad_x.shape} from dL/dy {grad.shape} and the turned kernel {turned.shape}")
    assert_equal(x.grad, grad_x)
    assert_equal(weight.grad, grad_weight)


def step_5_max_pool_routes_the_gradient() -> None:
    """All of a window's gradient goes to its maximum. If windows share a maximum, their gradients add up."""
    x = leaf([[1.0, 2.0, 0.0], [3.0, 9.0, 5.0], [4.0, 6.0, 7.0]])
    y = max_pool2d(x.reshape(1, 3, 3, 1), kernel_size=2, stride=1)  # four windows, all of which see the 9
    y.backward(Tensor(np.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 2, 2, 1)))
    print(f"dL/dx =\n{x.grad.numpy()}")
    assert_equal(x.grad, [[0, 0, 0], [0, 1111, 0], [0, 0, 0]])

    tied = leaf(np.ones((1, 2, 2, 1)))
    max_pool2d(tied, kernel_size=2).sum().backward()
    print(f"of four equal numbers the first gets it: {tied.grad.numpy().ravel()}")
    assert_equal(tied.grad.reshape(4), [1, 0, 0, 0])


def step_6_the_three_terms_of_batch_norm() -> None:
    """x acts on y directly, through the mean, and through the variance."""
    rng = np.random.default_rng(6)
    x, weight, bias, grad = normal(rng, 8, 3), leaf([1.0, 2.0, 0.5]), leaf([0.0, 1.0, 2.0]), rng.standard_normal((8, 3))
    batch_norm(x, weight, bias, eps=1e-5).backward(Tensor(grad))

    mean, std = x.numpy().mean(axis=0), np.sqrt(x.numpy().var(axis=0) + 1e-5)  # (3,)
    x_hat, scale = (x.numpy() - mean) / std, weight.numpy() / std
    direct = scale * grad
    through_mean = -scale * grad.mean(axis=0)
    through_variance = -scale * x_hat * (grad * x_hat).mean(axis=0)
    sizes = [np.linalg.norm(np.broadcast_to(term, x.shape)) for term in (direct, through_mean, through_variance)]
    print("norms: direct {:.2f}, through the mean {:.2f}, through the variance {:.2f}".format(*sizes))
    assert_equal(x.grad, direct + through_mean + through_variance)
    assert np.abs(x.grad.numpy().sum(axis=0)).max() < 1e-12  # adding a constant to x does not change y


def residual_branch(block: BasicBlock, x: Tensor) -> Tensor:
    """F(x) = bn(conv(relu(bn(conv(x))))), from functions and the block's parameters."""
    y = relu(batch_norm(conv2d(x, block.conv1.weight, padding=1), block.bn1.weight, block.bn1.bias))
    return batch_norm(conv2d(y, block.conv2.weight, padding=1), block.bn2.weight, block.bn2.bias)


def step_7_a_residual_block() -> None:
    """relu(F(x) + x), written out and as the models write it. Two contributions to dL/dx meet at x."""
    rng = np.random.default_rng(7)
    block = BasicBlock(4, 4, stride=1, shortcut="A").to("float64")
    x, grad = rng.standard_normal((2, 6, 6, 4)), Tensor(rng.standard_normal((2, 6, 6, 4)))
    written, modelled = leaf(x), leaf(x)
    y, same = relu(residual_branch(block, written) + written), block(modelled)
    y.backward(grad)
    same.backward(grad)
    assert_equal(same, y)
    assert_equal(modelled.grad, written.grad)

    branch, skip = leaf(x), leaf(x)  # the same numbers as two leaves, to see each contribution by itself
    relu(residual_branch(block, branch) + skip).backward(grad)
    sizes = [np.linalg.norm(tensor.grad.numpy()) for tensor in (skip, branch, written)]
    print("norms of dL/dx: through the skip connection {:.2f}, through F {:.2f}, their sum {:.2f}".format(*sizes))
    assert_equal(skip.grad, np.where(y.numpy() > 0, grad.numpy(), 0))  # only the last ReLU is on its way
    assert_equal(written.grad, skip.grad.numpy() + branch.grad.numpy())


class SlopedReLU(Function):
    """max(x, 0) + 0.1 min(x, 0), with a mistake in backward: the slope of the negative side is missing."""

    @staticmethod
    def forward(ctx, x):
        """y, from arrays."""
        ctx.save(x)
        return np.maximum(x, 0) + 0.1 * np.minimum(x, 0)

    @staticmethod
    def backward(ctx, grad):
        """dL/dx, wrong where x < 0: it should be 0.1 dL/dy there."""
        (x,) = ctx.saved
        return np.where(x > 0, grad, 0)


def step_8_a_gradient_check_finds_a_mistake() -> None:
    """gradcheck compares backward with the slope of forward, measured by small steps."""
    x = leaf([[-2.0, -1.0], [1.0, 2.0]])
    minidl.gradcheck(relu, [x])  # right: no error
    try:
        minidl.gradcheck(lambda x: minidl.apply(SlopedReLU, x), [x])
    except minidl.testing.GradientError as error:
        print(error)
        assert "worst at index (0, " in str(error)  # the row of negative numbers
    else:
        raise AssertionError("the mistake was not found")


def batch_of_shapes() -> tuple[Tensor, np.ndarray]:
    """40 images, (40, 32, 32, 3), and their labels, (40,)."""
    dataset = make_shapes(40)
    return Tensor(normalize(dataset.images, 128, 64)), dataset.labels


def initial_weights() -> dict[str, np.ndarray]:
    """The weights of a small network: a convolution with 16 kernels, and a linear layer."""
    minidl.manual_seed(0)
    return {"conv": nn.init.he_normal((5, 5, 3, 16)), "linear": nn.init.xavier_normal((16, 10))}


def losses_without_nn_and_optim(steps: int, lr: float) -> list[float]:
    """The loss of each step of gradient descent, from tensors and functions alone."""
    images, labels = batch_of_shapes()
    weights = {name: Tensor(array, requires_grad=True) for name, array in initial_weights().items()}
    losses = []
    for _ in range(steps):
        features = global_avg_pool(relu(conv2d(images, weights["conv"], stride=2)))  # (40, 14, 14, 16) -> (40, 16)
        loss = cross_entropy(linear(features, weights["linear"]), labels)
        loss.backward()
        for weight in weights.values():
            weight.data -= np.float32(lr) * weight.grad.data
            weight.grad = None  # otherwise the next backward would add to it
        losses.append(loss.item())
    return losses


def losses_with_nn_and_optim(steps: int, lr: float) -> list[float]:
    """The same: a module holds the weights, and an optimiser updates them."""
    images, labels = batch_of_shapes()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, bias=False), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(16, 10, bias=False)
    )
    print(model)
    for parameter, array in zip(model.parameters(), initial_weights().values(), strict=True):
        parameter.data = array
    optimizer = optim.SGD(model.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def step_9_training_without_nn_and_optim() -> None:
    """Forward, backward, update: the loss falls in every step."""
    losses = losses_without_nn_and_optim(steps=5, lr=0.1)
    print("losses:", *(f"{loss:.4f}" for loss in losses))
    assert all(after < before for before, after in itertools.pairwise(losses))


def step_10_the_same_with_nn_and_optim() -> None:
    """The same losses, in float32."""
    losses = losses_with_nn_and_optim(steps=5, lr=0.1)
    print("losses:", *(f"{loss:.4f}" for loss in losses))
    assert_equal(losses, losses_without_nn_and_optim(steps=5, lr=0.1), rtol=1e-6)


STEPS: tuple[Callable[[], None], ...] = (
    step_1_a_chain_of_scalars,
    step_2_broadcasting,
    step_3_a_convolution_is_a_matrix_product,
    step_4_its_gradient_is_another_convolution,
    step_5_max_pool_routes_the_gradient,
    step_6_the_three_terms_of_batch_norm,
    step_7_a_residual_block,
    step_8_a_gradient_check_finds_a_mistake,
    step_9_training_without_nn_and_optim,
    step_10_the_same_with_nn_and_optim,
)


def main() -> None:
    """Take the steps that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("steps", nargs="*", type=int, metavar="STEP", help="1 to 10; all if none is given")
    chosen = parser.parse_args().steps or range(1, len(STEPS) + 1)
    if not all(1 <= number <= len(STEPS) for number in chosen):
        parser.error(f"expected steps from 1 to {len(STEPS)}, got {' '.join(map(str, chosen))}")
    for number in chosen:
        step = STEPS[number - 1]
        title = step.__name__.removeprefix(f"step_{number}_").replace("_", " ")
        print(f"\nStep {number}: {title}\n{step.__doc__}")
        step()


if __name__ == "__main__":
    main()
