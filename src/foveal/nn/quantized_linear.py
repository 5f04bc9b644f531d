"""Linear layers with quantized weights.

What computes a layer, the first of these that can:

    native   the kernel of `nn.native`: inputs rounded to 8 bits in blocks of up to 128
    stock    torch's operators on a CPU: 8 bits with inputs rounded row by row, 4 bits with bfloat16 inputs
    dense    the weight unpacked at every call: other devices, gradients, other types and sizes
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.native.memory import settle
from foveal.nn.native.products import Product, by_block, computes, input_step, lines, unblocked, unlined
from foveal.nn.quantized import Codes, joined
from foveal.nn.stock_products import stock


class QuantizedLinear(nn.Module):
    """y = x W^T + b with the weight as `Codes`.

    Buffers hold the codes in the kernel's layout; they are no part of `state_dict`, since a checkpoint has a layout of
    its own for them (`weights.quantized`).
    """

    codes_: Tensor
    scales_: Tensor
    zeros_: Tensor | None
    order_: Tensor | None

    def __init__(self, codes: Codes, bias: nn.Parameter | None = None, *, dtype: torch.dtype | None = None) -> None:
        """`dtype` is that of the weight as others see it; the scales' by default."""
        super().__init__()
        self.out_features, self.in_features = codes.codes.shape
        self.bits, self.group = codes.bits, codes.group
        self.stored = dtype or codes.scales.dtype
        self.bias = bias
        self.register_buffer("codes_", lines(codes.codes, codes.bits), persistent=False)
        scales = by_block(codes.scales)
        self.register_buffer("scales_", settle(scales) if scales.is_cpu else scales, persistent=False)
        self.register_buffer("zeros_", None if codes.zeros is None else by_block(codes.zeros), persistent=False)
        self.register_buffer("order_", codes.order, persistent=False)
        self._product: Product | Callable[[Tensor], Tensor] | None = None
        self._how = ""

    @property
    def codes(self) -> Codes:
        """The weight as codes, one a byte."""
        return Codes(
            bits=self.bits,
            codes=unlined(self.codes_, self.bits, self.out_features),
            scales=unblocked(self.scales_, self.out_features),
            zeros=None if self.zeros_ is None else unblocked(self.zeros_, self.out_features),
            order=self.order_,
        )

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The unpacked weight, for whoever reads it."""
        return self.codes.dense(self.stored)

    @property
    def how(self) -> str:
        """What computes inference here: "native", "stock" or "dense"."""
        if self._product is None and self._how != "dense":  # new, or a copy
            self._prepare()
        return self._how

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def product(self) -> Product | None:
        """What the own kernel computes with, where it does so and takes inputs in their order."""
        if self.how != "native" or self.order_ is not None or not isinstance(self._product, Product):
            return None
        return self._product

    @classmethod
    def join(cls, layers: "Sequence[QuantizedLinear]") -> "QuantizedLinear | None":
        """One layer whose outputs are those of several, end to end; None where their weights differ in kind."""
        codes = joined([layer.codes for layer in layers])
        if codes is None:
            return None
        biases = [layer.bias for layer in layers]
        bias = None
        if any(b is not None for b in biases):
            none = codes.scales.new_zeros
            full = [none(n.out_features, dtype=n.stored) if n.bias is None else n.bias.detach() for n in layers]
            bias = nn.Parameter(torch.cat(full), requires_grad=False)
        return cls(codes, bias, dtype=layers[0].stored)

    def _prepare(self) -> None:
        step = input_step(self.group)
        if step is not None and computes(self.scales_, self.in_features):
            self._product, self._how = (
                Product(
                    self.codes_,
                    self.scales_,
                    self.zeros_,
                    self.bias,
                    rows=self.out_features,
                    columns=self.in_features,
                    bits=self.bits,
                ),
                "native",
            )
        elif self.codes_.device.type == "cpu" and (made := stock(replace(self.codes, order=None))) is not None:
            self._product, self._how = made, "stock"
        else:
            self._product, self._how = None, "dense"

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        if x.requires_grad or self.how == "dense" or self._product is None:
            return F.linear(x, self.codes.dense(x.dtype), self.bias)
        flat = x.reshape(-1, self.in_features)
        if self.order_ is not None:
            flat = flat[:, self.order_]
        if isinstance(self._product, Product):
            wide = flat if x.dtype in (torch.float32, torch.bfloat16) else flat.float()
            out = self._product(wide.contiguous()).to(x.dtype)
        else:
            out = self._product(flat)
            out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Moves the tensors, as torch's modules do; what computes is chosen anew."""
        self._product, self._how = None, ""
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int{self.bits}, groups of {self.group}"
