"""What compiled code may read."""

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def readable(*tensors: Tensor, dtype: torch.dtype) -> bool:
    """Whether all are of one type, contiguous, in the host's memory, and need no gradients.

    Stand-ins of tracers have no memory, and what is being compiled is left to torch.
    """
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if (
            tensor.dtype != dtype
            or type(tensor) not in _PLAIN
            or not tensor.is_cpu
            or not tensor.is_contiguous()
            or (grad and tensor.requires_grad)
        ):
            return False
    return not torch.compiler.is_compiling()
