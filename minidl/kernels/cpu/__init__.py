"""The kernels on the CPU, in NumPy. Files that begin with an underscore are private to this device."""

from minidl.kernels.cpu.activation import add, relu_backward, relu_forward
from minidl.kernels.cpu.augment import crop_and_flip
from minidl.kernels.cpu.batch_norm import (
    batch_norm_apply,
    batch_norm_backward,
    batch_statistics,
)
from minidl.kernels.cpu.bias import bias_backward
from minidl.kernels.cpu.conv import conv2d_backward, conv2d_forward
from minidl.kernels.cpu.dropout import dropout_backward, dropout_forward
from minidl.kernels.cpu.linear import linear_backward_weight, linear_backward_x, linear_forward
from minidl.kernels.cpu.local_response_norm import local_response_norm_backward, local_response_norm_forward
from minidl.kernels.cpu.loss import cross_entropy_backward, cross_entropy_forward, mse_loss_backward, mse_loss_forward
from minidl.kernels.cpu.pad import pad_channels_backward, pad_channels_forward
from minidl.kernels.cpu.pool import (
    avg_pool2d_backward,
    avg_pool2d_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from minidl.kernels.cpu.scatter import scatter_add
from minidl.kernels.cpu.softmax import log_softmax_backward, log_softmax_forward, softmax_backward, softmax_forward
from minidl.kernels.cpu.update import adam_update, sgd_update, update_running_statistics
