"""The form of a network that answers fastest: joined projections, and linear layers in another form.

    prepare(network)                      # packed bfloat16 layers on a CPU; joined projections everywhere
    prepare(network, replace=mine)        # mine(name, layer) -> the module that takes its place, or None: it stays
    Gradual(network)                      # the same, a few layers before every step once the network is used
    with restored(network): ...           # as it was loaded, for saving or training

A replacement maps [*B, I] to [*B, O] like the layer whose place it takes; where it gives that layer back by
`unpacked()`, the preparation can be undone exactly. What is replaced leaves memory before the next layer comes, mapped
files included: peak memory is that of the weights and a few layers.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError
from foveal.engine.prefix import weights_key as fingerprint
from foveal.families.vlm import VLM
from foveal.language.decoder import Decoder
from foveal.nn.compact import CompactLinear, compacts
from foveal.nn.joined import Joint, apart, join, joinable
from foveal.nn.linear import Linear
from foveal.nn.lora import LoraLinear, UpdatedLinear
from foveal.nn.packed import PackedLinear, packs
from foveal.weights.pages import MappedFiles

Replace = Callable[[str, nn.Linear], nn.Module | None]
"""(name of a linear layer in the network, the layer) -> what computes it from now on, or None to leave it.

A joined layer is named after its joint (`language.layers.0.attention.qkv`), the head of a network that has its
embedding for it `language.tied_head`.
"""


@runtime_checkable
class Reversible(Protocol):
    """A replacement that gives back the layer whose place it took."""

    def unpacked(self) -> nn.Linear: ...


def pack(name: str, layer: nn.Linear) -> nn.Module | None:  # noqa: ARG001
    """The packed form of a layer where there is one."""
    return PackedLinear(layer) if packs(layer) else None


def compact(name: str, layer: nn.Linear) -> nn.Module | None:
    """The compact form of a layer of a language model where there is one; a tower computes more than it reads."""
    return CompactLinear.of(layer) if name.startswith("language.") and compacts(layer) else None


def prepare(network: nn.Module, replace: Replace = pack) -> None:
    """Joins projections of one input and replaces linear layers, in place. What is prepared already stays as it is.

    For inference only: gradients do not pass packed layers, and prepared networks do not change type or device.
    """
    with torch.no_grad():
        for _ in _steps("", network, replace, MappedFiles()):
            pass


def is_prepared(network: nn.Module) -> bool:
    """Whether any layer has another form than the loaded one."""
    return any(isinstance(m, Joint | UpdatedLinear | Reversible) for m in network.modules())


def restore(network: nn.Module) -> None:
    """Undoes `prepare` in place: every tensor has its old name and exactly its old value.

    Raises `ConfigError`, before anything is changed, for a replacement that does not give its layer back.
    """
    for name, module in network.named_modules():
        base = module.base if isinstance(module, UpdatedLinear) else None
        if base is not None and not isinstance(base, nn.Linear | Reversible):
            raise ConfigError(f"{name} is a {type(base).__name__}, which does not hold the loaded weight any more.")
    with torch.no_grad():
        _restore(network)


@contextmanager
def restored(network: nn.Module, replace: Replace = pack) -> Iterator[None]:
    """The network as it was loaded; prepared again at the end if it was before."""
    before = is_prepared(network)
    if before:
        restore(network)
    try:
        yield
    finally:
        if before:
            prepare(network, replace)


def weights_key(network: nn.Module) -> bytes:
    """256 bits that change whenever a weight is replaced or written to, an adapter's too; `Gradual` keeps them."""
    found = fingerprint(network)
    return _ORIGINALS.get(network, {}).get(found, found)


_ORIGINALS: WeakKeyDictionary[nn.Module, dict[bytes, bytes]] = WeakKeyDictionary()
"""Fingerprints of a network's prepared forms, and that of the loaded form that each computes the same as."""


STEP_BYTES = 128 * 1024**2
"""Weights that `Gradual` prepares before a step: 0.03 s, or a quarter of one where memory is new to the machine."""


class Gradual:
    """Prepares a network while it answers: nothing before its first step, then some layers before every further one.

    To put the weights of a model of 2 billion parameters in another order takes as long as its first 5 to 40 tokens, so
    the first token does not wait for it. A tower that sees nothing is left as it is, and takes no memory. While
    gradients are recorded nothing is prepared. One thread may compute at a time.

    Args:
        step_bytes: weights that are prepared before a step, about.
        most_tokens: steps of the language model with more tokens are not delayed; None: all may be.
    """

    def __init__(
        self, network: VLM, replace: Replace = pack, *, step_bytes: int = STEP_BYTES, most_tokens: int | None = None
    ) -> None:
        self._network = weakref.ref(network)  # a model that is dropped is gone at once
        self.replace, self.step_bytes, self.most_tokens = replace, step_bytes, most_tokens
        self._files: MappedFiles | None = None
        self._used: dict[str, Iterator[int]] = {}
        self._hooks = [network.language.register_forward_pre_hook(self._before)]
        self._watch(network.language, ("language",))
        self._watch(network.vision, ("adapter", "vision"))

    def advance(self) -> bool:
        """Prepares the next layers of the parts that have worked; whether there was anything to do."""
        network = self._network()
        if not self._used or network is None:
            return False
        if self._files is not None:
            self._files.look()
        before = weights_key(network)
        done = 0
        with torch.no_grad():
            while self._used and done < self.step_bytes:
                part = next(iter(self._used))
                layer = next(self._used[part], None)
                if layer is None:
                    del self._used[part]
                else:
                    done += layer
        _ORIGINALS.setdefault(network, {})[fingerprint(network)] = before
        return True

    def finish(self) -> None:
        """Prepares all of the parts that have worked."""
        while self.advance():
            pass

    def end(self) -> None:
        """Undoes what was done, and does no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._used.clear()
        network = self._network()
        if network is not None and is_prepared(network):
            restore(network)

    def _before(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled() and (self.most_tokens is None or len(inputs[0]) <= self.most_tokens):
            self.advance()

    def _watch(self, module: nn.Module, parts: Sequence[str]) -> None:
        """Takes up `parts` once `module` has worked without gradients."""

        def begin(*_: Any) -> None:
            network = self._network()
            if torch.is_grad_enabled() or network is None:
                return
            hook.remove()
            self._hooks.remove(hook)
            self._files = self._files or MappedFiles()
            for part in parts:
                self._used[part] = _steps(part, getattr(network, part), self.replace, self._files)

        hook = module.register_forward_hook(begin)
        self._hooks.append(hook)


def _steps(name: str, owner: nn.Module, replace: Replace, files: MappedFiles) -> Iterator[int]:
    """Prepares layer by layer; tells the bytes of the weights after each."""
    for joined, parts in list(joinable(owner)):
        old = [_weight(owner._modules[part]) for part in parts]
        join(owner, joined, parts)
        for weight in old:
            files.forget(weight)
        del old, weight
    for child in list(owner._modules):
        module = owner._modules[child]
        if module is None or child in getattr(owner, "plain_layers", ()):
            continue
        full = f"{name}.{child}" if name else child
        if isinstance(module, Joint):
            done = _weight_bytes(module.whole)
            module.whole = _replaced(full, module.whole, replace, files)
            yield done
        elif isinstance(module, nn.Linear):
            setattr(owner, child, _replaced(full, module, replace, files))
            yield _weight_bytes(module)
        else:
            del module
            yield from _steps(full, owner.get_submodule(child), replace, files)
    if isinstance(owner, Decoder) and owner.head is None and owner.tied_head is None:
        owner.tied_head = _tied_head(f"{name}.tied_head" if name else "tied_head", owner, replace, files)
        yield owner.embed.weight.nbytes


def _weight(layer: Any) -> Tensor:
    return layer.frozen if isinstance(layer, LoraLinear) else layer.weight


def _weight_bytes(layer: nn.Module) -> int:
    return _weight(layer).nbytes if isinstance(layer, nn.Linear) else 0


def _tied_head(name: str, owner: Decoder, replace: Replace, files: MappedFiles) -> nn.Module | None:
    """A head of its own; the embedding stays as it is, of which only the rows of the prompt's tokens are read."""
    if type(owner.embed) is not nn.Embedding:
        return None
    weight = owner.embed.weight
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    new = replace(name, layer)
    if new is not None:
        files.forget(weight)
        new.train(owner.training)
    return new


def _replaced(name: str, layer: nn.Module, replace: Replace, files: MappedFiles) -> nn.Module:
    if type(layer) not in (Linear, LoraLinear):
        return layer
    plain: Any = layer.without() if isinstance(layer, LoraLinear) else layer
    new = replace(name, plain)
    if new is None:
        return layer
    files.forget(plain.weight)
    new.train(layer.training)
    return UpdatedLinear(new, layer) if isinstance(layer, LoraLinear) else new


def _restore(owner: nn.Module) -> None:
    for child in list(owner._modules):
        module = owner._modules[child]
        if module is None:
            continue
        if child == "tied_head":
            owner._modules[child] = None
        elif isinstance(module, Joint):
            module.whole = _loaded(module.whole)
            apart(owner, child)
        elif (loaded := _loaded(module)) is not module:
            setattr(owner, child, loaded)
        else:
            _restore(module)


def _loaded(module: nn.Module) -> nn.Module:
    if isinstance(module, UpdatedLinear):
        return module.adapted(_plain(module.base))
    return module.unpacked() if isinstance(module, Reversible) else module


def _plain(module: nn.Module) -> nn.Linear:
    if isinstance(module, Reversible):
        return module.unpacked()
    if isinstance(module, nn.Linear):
        return module
    raise ConfigError(f"a {type(module).__name__} does not hold the loaded weight any more.")
