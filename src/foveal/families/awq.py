"""Activation-aware rounding (AWQ, Lin et al. 2023, section 3.2): channels that carry much are rounded finely.

A linear layer's inputs are divided by s and its weight's columns multiplied by s, which changes nothing before
rounding; the division is folded into what makes the inputs: the norm before, or the rows of the layer before. s is the
mean size of each input channel to the power of alpha (eq. 5); of ALPHAS the one is taken under which the results of the
rounded layers on recorded inputs differ least. The error of a channel counts by its mean square when scales are chosen.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError, InputError
from foveal.core.packed import Packed
from foveal.families.quantize import Quantization, chosen
from foveal.families.vlm import VLM
from foveal.nn.mlp import GatedMLP
from foveal.nn.quantized import Codes, rounded

ALPHAS = tuple(n / 10 for n in range(10))
ROWS = 512
"""Inputs of every layer that the search looks at, evenly of those recorded."""
SAMPLES = 64
"""Inputs of every layer that are recorded of one batch, evenly of its tokens."""


class Inputs:
    """Records what some layers are given, as the network computes it."""

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        self.kept: dict[str, list[Tensor]] = {name: [] for name in names}
        self._hooks = [
            network.get_submodule(name).register_forward_pre_hook(self._recorder(name)) for name in self.kept
        ]

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG001
            x = arguments[0].detach().flatten(0, -2)
            self.kept[name].append(x[:: max(1, len(x) // SAMPLES)][:SAMPLES].clone())

        return record

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def of(self, name: str) -> Tensor:
        """The recorded inputs [N, I] in float32."""
        every = torch.cat(self.kept[name])
        return every[:: max(1, len(every) // ROWS)][:ROWS].float()


@torch.no_grad()
def aware_codes(
    network: VLM,
    how: Quantization,
    batches: Iterable[Packed],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Codes]:
    """The codes of all covered layers, by name; norms of the network are changed to suit them, in place.

    `batches` are conversations like those that the model will see; some dozens do.

    Raises `InputError` without any, `ConfigError` for covered layers outside the language model.
    """
    layers, group = chosen(network, how)
    if strange := [name for name in layers if not name.startswith("language.layers.")]:
        raise ConfigError(f"method awq rounds the language model's layers only; {strange[0]} is none of them.")
    with Inputs(network, layers) as inputs:
        count = 0
        for batch in batches:
            network(batch, at=batch.starts[1:] - 1)
            count += 1
    if not count:
        raise InputError("method awq needs conversations to look at; the calibration file has none.")
    codes: dict[str, Codes] = {}
    blocks = list(network.language.layers)
    for number, block in enumerate(blocks):
        prefix = f"language.layers.{number}."
        own = {name.removeprefix(prefix): layer for name, layer in layers.items() if name.startswith(prefix)}
        done = _Block(block, own, {name: inputs.of(prefix + name) for name in own}, how.bits, group).codes()
        codes.update({prefix + name: made for name, made in done.items()})
        for name in own:
            del inputs.kept[prefix + name]
        if progress is not None:
            progress(number + 1, len(blocks))
    return codes


class _Block:
    """One layer of the decoder: its weights in float32, and what they were given."""

    def __init__(
        self, block: nn.Module, layers: dict[str, nn.Linear], inputs: dict[str, Tensor], bits: int, group: int | None
    ) -> None:
        self.block, self.layers, self.inputs, self.bits, self.group = block, layers, inputs, bits, group
        self.weights = {name: layer.weight.detach().to(torch.float32, copy=True) for name, layer in layers.items()}
        self.kinds = {name: layer.weight.dtype for name, layer in layers.items()}

    def codes(self) -> dict[str, Codes]:
        self._after_norm("norm1", [n for n in ("attention.q", "attention.k", "attention.v") if n in self.layers], 3)
        if isinstance(getattr(self.block, "mlp", None), GatedMLP):
            self._after_norm("norm2", [n for n in ("mlp.gate", "mlp.up") if n in self.layers], 2)
            self._after_up()
        return {name: self._round(name, self.weights[name]) for name in self.layers}

    def _round(self, name: str, weight: Tensor, inputs: Tensor | None = None) -> Codes:
        x = self.inputs[name] if inputs is None else inputs
        importance = x.square().mean(0).clamp_min(1e-12)
        size = self.group or weight.shape[1]
        return rounded(weight, bits=self.bits, group=size, importance=importance, kind=self.kinds[name])

    def _best(self, names: Sequence[str]) -> Tensor | None:
        """The scale of the inputs of some layers that share them; None where none is best."""
        x = self.inputs[names[0]]
        size = x.abs().mean(0).clamp_min(1e-4)
        best: tuple[float, Tensor | None] = (float("inf"), None)
        for alpha in ALPHAS:
            s = size**alpha
            s = s / (s.max() * s.min()).sqrt()
            error = 0.0
            for name in names:
                weight = self.weights[name] * s
                apart = self._round(name, weight, x / s).dense() - weight
                error += float(((x / s) @ apart.T).square().sum())
            if error < best[0]:
                best = (error, None if alpha == 0 else s)
        return best[1]

    def _after_norm(self, norm: str, names: list[str], whole: int) -> None:
        """Scales what a norm gives to some layers; only if it gives it to nobody else."""
        if len(names) != whole or (s := self._best(names)) is None:
            return
        scale = getattr(self.block, norm).weight
        before = scale.detach().to(torch.float32, copy=True)
        scale.copy_(before / s)
        after = scale.detach().float()
        # What the norm's own type can hold decides; a channel that it silences is left alone.
        s = torch.where(after != 0, before / torch.where(after != 0, after, 1.0), torch.ones_like(s))
        s = torch.where(s != 0, s, torch.ones_like(s))
        for name in names:
            self.weights[name] *= s
            self.inputs[name] = self.inputs[name] / s

    def _after_up(self) -> None:
        """Scales what `up` gives to `down`."""
        if not {"mlp.up", "mlp.down"} <= self.layers.keys() or (s := self._best(["mlp.down"])) is None:
            return
        self.weights["mlp.down"] *= s
        self.inputs["mlp.down"] = self.inputs["mlp.down"] / s
        self.weights["mlp.up"] /= s[:, None]
        if (bias := self.layers["mlp.up"].bias) is not None:
            bias.copy_(bias.float() / s)
