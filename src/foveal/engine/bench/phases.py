"""`foveal bench`: how long the phases of answering take on this machine, and which limit binds each."""

import io
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from foveal.core.errors import ContextError, InputError
from foveal.core.packed import Packed
from foveal.engine.bench.roofs import Roofs, measure_roofs, seconds, settle
from foveal.engine.bench.work import Estimate, Work
from foveal.engine.engine import Engine
from foveal.engine.model import Model
from foveal.engine.options import EngineOptions
from foveal.engine.request import Sampling
from foveal.nn.compact import CompactLinear
from foveal.nn.quantized_linear import QuantizedLinear

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured.

    Attributes:
        pictures: sizes of JPEG files that are processed; a screen and a 12-megapixel photograph.
        image_px: side of the square picture for the tower and the first token.
        text_tokens: tokens of text beside it, about.
        prompt_tokens: length of the text prompt for prefill and decoding.
        requests: how many are decoded at once, one measurement each.
        contexts: tokens already there when one more is decoded, alone; those that fit into the model's context.
        decode_tokens: steps of decoding that are timed.
        repeats: turns of the other phases; the middle one counts.
    """

    pictures: tuple[tuple[int, int], ...] = ((1024, 768), (4032, 3024))
    image_px: int = 448
    text_tokens: int = 64
    prompt_tokens: int = 512
    requests: tuple[int, ...] = (1, 4, 8)
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    decode_tokens: int = 16
    repeats: int = 3

    def __post_init__(self) -> None:
        for name in ("image_px", "text_tokens", "prompt_tokens", "decode_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("requests", "contexts"):
            if any(value < 1 for value in getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; expected numbers of at least 1.")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One phase.

    Attributes:
        phase: its name.
        detail: what was done.
        seconds, low, high: median of the turns, and the shortest and longest.
        amount, unit: how much was done in that time (tokens, pictures).
        roof: "memory" or "products", whichever binds; None where neither applies.
        bound_s: least seconds under that roof.
        read_bytes, flop: the work that the bound comes from.
        context_tokens: for decoding over a growing context, the tokens that were there.
    """

    phase: str
    detail: str
    seconds: float
    low: float
    high: float
    amount: float
    unit: str
    roof: str | None = None
    bound_s: float | None = None
    read_bytes: float | None = None
    flop: float | None = None
    context_tokens: int | None = None

    @property
    def rate(self) -> float:
        """Amount a second."""
        return self.amount / self.seconds

    @property
    def share(self) -> float | None:
        """Of the roof that is reached: 1 is at the roof."""
        return None if self.bound_s is None else self.bound_s / self.seconds


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured. Memory is the peak of the process, of an accelerator its allocator's."""

    model: str
    device: str
    dtype: str
    threads: int
    torch: str
    roofs: Roofs
    timings: tuple[Timing, ...]
    loaded_bytes: int
    peak_bytes: int

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [{**asdict(t), "rate": t.rate, "share": t.share} for t in self.timings]
        return {**asdict(self), "timings": rows}


def bench(model: Model, options: BenchOptions = BenchOptions(), *, name: str = "") -> Report:
    """Measures `model`; `name` is what the report calls it. Takes minutes on a CPU for 2 billion parameters."""
    return _Bench(model, options).report(name)


class _Bench:
    def __init__(self, model: Model, options: BenchOptions) -> None:
        self.model, self.options = model, options
        self.device, self.dtype = model.prepared.device, model.prepared.dtype
        item = self.dtype.itemsize
        language, tower = (weight_bytes(part, item) for part in (model.prepared.language, model.prepared.vision))
        self.estimate = Estimate(model.family, model.config, weight_bytes=language, tower_bytes=tower, cache_item=item)
        self.context = model.family.context(model.config)
        self.rng = np.random.default_rng(0)

    def report(self, name: str) -> Report:
        loaded = peak_bytes(self.device)
        roofs = measure_roofs(self.device, self.dtype)
        log.info("memory %.1f GB/s, products %.0f GFLOP/s", roofs.read_bytes_s / 1e9, roofs.product_flop_s / 1e9)
        timings = []
        for measured, work in self.timings():
            timing = measured
            if work is not None:
                roof, bound = work.bound(roofs)
                timing = replace(measured, roof=roof, bound_s=bound, read_bytes=work.read_bytes, flop=work.flop)
            log.info("%s, %s: %.4g s", timing.phase, timing.detail, timing.seconds)
            timings.append(timing)
        return Report(
            model=name,
            device=str(self.device),
            dtype=type_name(self.model.prepared, self.dtype),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            roofs=roofs,
            timings=tuple(timings),
            loaded_bytes=loaded,
            peak_bytes=peak_bytes(self.device),
        )

    def timings(self) -> Iterator[tuple[Timing, Work | None]]:
        for size in self.options.pictures:
            yield self.preprocess(size), None
        packed = self.model.process(self.question(self.options.text_tokens))
        yield self.vision(packed), self.estimate.vision(packed)
        prompt = self.options.prompt_tokens
        yield self.prefill(prompt), self.estimate.prefill(prompt)
        self.model.prepare()  # no step of those that are timed shall do it
        self.estimate.weight_bytes = weight_bytes(self.model.prepared.language, self.dtype.itemsize)
        for requests in self.options.requests:
            yield self.decode(requests, prompt), self.estimate.decode(requests, prompt)
        yield from self.contexts()
        yield from self.first_token()

    def preprocess(self, size: tuple[int, int]) -> Timing:
        data = jpeg(*size, rng=self.rng)
        message = [{"role": "user", "content": [{"type": "image", "image": data}, {"type": "text", "text": "?"}]}]
        turns = self.turns(lambda: self.model.process(message))
        return timed("preprocess", f"JPEG {size[0]}x{size[1]}", turns, size[0] * size[1] / 1e6, "Mpx")

    def vision(self, packed: Packed) -> Timing:
        with torch.inference_mode():
            turns = self.turns(lambda: self.model.prepared.see(packed))
        tokens = sum(m.tokens for m in packed.media)
        return timed("vision", f"{self.options.image_px} px, {len(packed.patches)} patches", turns, tokens, "tokens")

    def prefill(self, tokens: int) -> Timing:
        packs = [self.prompt(tokens) for _ in range(self.options.repeats + 1)]  # nothing of a prompt is known before
        engine = self.engine(step_tokens=tokens)
        turns = [self.until_first(engine, packed) for packed in packs][1:]
        return timed("prefill", f"{tokens} tokens", turns, tokens, "tokens")

    def decode(self, requests: int, context: int) -> Timing:
        """Steps of `requests` with lengths from half of `context` on up, `context` in the mean."""
        engine = self.engine(max_requests=requests)
        lengths = np.linspace(context / 2, context * 3 / 2, requests).astype(int) if requests > 1 else [context]
        for length in lengths:
            engine.add(self.prompt(int(length)), self.sampling(self.options.decode_tokens + 4 * requests + 8))
        turns = self.steps(engine, requests)
        return timed("decode", f"{requests} at once, {context} tokens each", turns, requests, "tokens")

    def contexts(self) -> Iterator[tuple[Timing, Work | None]]:
        """One sequence that grows: what is there already comes from the prefix cache."""
        engine = self.engine(prefix_cache=True)
        room = self.options.decode_tokens + 16
        longest = max(self.options.contexts, default=0)
        whole = self.prompt(min(longest, self.context - room)) if longest and self.context > room else None
        for context in sorted(self.options.contexts):
            if whole is None or context > len(whole.tokens):
                log.info("decoding after %d tokens is left out: the model takes %d in all", context, self.context)
                continue
            engine.add(beginning(whole, context), self.sampling(room))
            timing = timed("decode", f"alone, after {context} tokens", self.steps(engine, 1), 1, "tokens")
            yield replace(timing, context_tokens=context), self.estimate.decode(1, context)

    def first_token(self) -> Iterator[tuple[Timing, Work | None]]:
        """From messages to the first token: new pictures, and a picture that was there before with another question."""
        engine = self.engine(prefix_cache=True)

        new, again = [], []
        for _ in range(self.options.repeats + 1):
            question = self.question(self.options.text_tokens)

            def asked(question: Any = question) -> None:
                self.until_first(engine, self.model.process(question))

            new.append(seconds(asked, self.device))
            again.append(seconds(asked, self.device))
        detail = f"{self.options.image_px} px and {self.options.text_tokens} tokens"
        yield timed("first token", detail, new[1:], 1, "answers"), None
        yield timed("first token", "the same question again", again[1:], 1, "answers"), None

    def turns(self, work: Callable[[], object]) -> list[float]:
        work()
        return [seconds(work, self.device) for _ in range(self.options.repeats)]

    def steps(self, engine: Engine, requests: int) -> list[float]:
        """Seconds of steps in which all requests say one token each; runs the engine until it is idle."""
        found: list[float] = []
        while engine.busy:
            settle(self.device)
            begun = time.perf_counter()
            events = engine.step()
            settle(self.device)
            spent = time.perf_counter() - begun
            if len(events) == requests:
                found.append(spent)
        timed_steps = found[1 : 1 + self.options.decode_tokens]  # the first may have carried a prompt along
        if len(timed_steps) < self.options.decode_tokens:
            raise ContextError(f"only {len(timed_steps)} of {self.options.decode_tokens} steps could be timed.")
        return timed_steps

    def until_first(self, engine: Engine, packed: Packed) -> float:
        """Seconds from adding a request to its first token; it is then given up."""

        def run() -> None:
            name = engine.add(packed, self.sampling(2))
            while not engine.step():
                pass
            engine.abort(name)

        return seconds(run, self.device)

    def engine(self, **changed: Any) -> Engine:
        return Engine(self.model, EngineOptions(**{"prefix_cache": False, **changed}))

    def sampling(self, tokens: int) -> Sampling:
        return Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)

    def prompt(self, tokens: int) -> Packed:
        """Random text of exactly `tokens` tokens."""
        tokenizer = self.model.processor.tokenizer
        plain = np.array(sorted(set(range(min(256, tokenizer.vocab_size))) - self.model.special_ids))
        packed = self.model.process([{"role": "user", "content": "?"}])
        ids = self.rng.choice(plain, tokens)
        positions = np.tile(np.arange(tokens, dtype=np.int64), (len(packed.positions), 1))
        return replace(
            packed, tokens=ids.astype(np.int64), positions=positions, starts=np.array([0, tokens]),
            deltas=np.zeros(1, np.int64), spans=(),
        )  # fmt: skip

    def question(self, text_tokens: int) -> Any:
        """A conversation with a new square picture and about that many tokens of text."""
        side = self.options.image_px
        picture = Image.fromarray(self.rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        words = " ".join("the" for _ in range(text_tokens // 2))
        return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": words}]}]


def type_name(network: nn.Module, dtype: torch.dtype) -> str:
    """The type of activations, and that of weights where some are quantized: "bfloat16 with int4 and int8"."""
    kinds = sorted({f"int{m.bits}" for m in network.modules() if isinstance(m, QuantizedLinear)})
    return str(dtype).removeprefix("torch.") + (f" with {' and '.join(kinds)}" if kinds else "")


def weight_bytes(part: nn.Module, item: int) -> float:
    """Bytes of one weight in the mean of the layers whose weights have a form of their own, scales and all; `item`
    where there are none."""
    count = size = 0
    for layer in part.modules():
        if isinstance(layer, QuantizedLinear | CompactLinear):
            count += layer.in_features * layer.out_features
            size += layer.weight_bytes
    return size / count if count else float(item)


def beginning(packed: Packed, tokens: int) -> Packed:
    """The first tokens of a text-only pack of one sequence."""
    return replace(
        packed, tokens=packed.tokens[:tokens], positions=packed.positions[:, :tokens], starts=np.array([0, tokens])
    )


def timed(phase: str, detail: str, turns: list[float], amount: int | float, unit: str) -> Timing:
    """The median of `turns` and their range."""
    return Timing(
        phase=phase,
        detail=detail,
        seconds=median(turns),
        low=min(turns),
        high=max(turns),
        amount=float(amount),
        unit=unit,
    )


def jpeg(width: int, height: int, *, rng: np.random.Generator) -> bytes:
    """A picture with large shapes and the noise of a sensor: about 2 bits a pixel, like a photograph."""
    coarse = rng.integers(0, 256, (height // 48 + 2, width // 48 + 2, 3), dtype=np.uint8)
    shapes = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = rng.normal(0, 6, (height, width, 1)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray((shapes + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
