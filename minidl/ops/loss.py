"""Loss functions: each returns a scalar L."""

from minidl.kernels import device_of, kernels_for, to_device
from minidl.ops.function import Function


class CrossEntropy(Function):
    """L = the mean over the batch of -sum_k t_k log p_k,   p = softmax(logits),   t = (1 - s) onehot(label) + s / K.

    logits (N, K), label (N,). d(-sum_k t_k log p_k)/dlogits = p - t, since sum_k t_k = 1; so dL/dlogits = (p - t) / N.
    s is the label smoothing of Szegedy et al. 2016, section 7.
    """

    @staticmethod
    def forward(ctx, logits, *, labels, label_smoothing: float):
        labels = to_device(labels, device_of(logits))
        loss, probabilities = kernels_for(logits).cross_entropy_forward(logits, labels, label_smoothing)
        ctx.save(probabilities, labels, label_smoothing)
        return loss

    @staticmethod
    def backward(ctx, grad):
        probabilities, labels, label_smoothing = ctx.saved
        return kernels_for(probabilities).cross_entropy_backward(grad, probabilities, labels, label_smoothing)


class MSELoss(Function):
    """L = the mean of (x - target)^2.   dL/dx = 2 (x - target) / count = -dL/dtarget."""

    @staticmethod
    def forward(ctx, x, target):
        ctx.save(x, target)
        return kernels_for(x).mse_loss_forward(x, target)

    @staticmethod
    def backward(ctx, grad):
        x, target = ctx.saved
        grad_x = kernels_for(x).mse_loss_backward(grad, x, target)
        return grad_x, -grad_x if ctx.needs_grad[1] else None
