"""Training steps beside transformers: forward, backward, clipping and AdamW at the same small Qwen2-VL shape.

    OMP_NUM_THREADS=2 python benchmarks/train_throughput.py --dtype bf16 --pictures mixed
    python benchmarks/train_throughput.py --device cuda     # size 2b alone: tokens a second and MFU

Both sides have the same weights, samples, loss (answers only), groups and settings of AdamW. Ours is the trainer's own
step over packs. transformers gets what its users give it: samples padded on the right with an attention mask, labels
of -100, `use_cache=False`, and position ids computed beforehand; in bfloat16 both autocast over float32 weights,
which keeps what is learned in float32 as ours does, and weights that are bfloat16 themselves, which do not.

Before anything is timed, both sides make updates in float32, and their losses must agree. Then the sides take turns on
the same samples in one process, and who begins changes. Ratios are medians over turns, with their range. Writes its
row of benchmarks/results/train_throughput.md and leaves the other rows as they are.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import Qwen2VLForConditionalGeneration

from foveal.core.box import ImageView
from foveal.core.packed import Medium, Packed, Span
from foveal.core.packed import Run as Visual
from foveal.data.sample import Sample
from foveal.families import qwen2_vl
from foveal.families.load import Loaded, save_folder
from foveal.language.config import DecoderConfig
from foveal.processing.positions import Block, MRope
from foveal.train.batches import StepPacks
from foveal.train.losses.next_token import targets
from foveal.train.meter import Meter, peak_operations
from foveal.train.ranks import Ranks
from foveal.train.run import Fresh, Run
from foveal.train.stage import Stage
from foveal.train.task import NextToken
from foveal.train.tiny import tiny
from foveal.train.trainer import StageRun
from foveal.vision.config import VisionConfig

RESULT = Path(__file__).parent / "results" / "train_throughput.md"
SMALL = qwen2_vl.Config(
    vision=VisionConfig(width=256, depth=6, heads=4, mlp_width=1024),
    language=DecoderConfig(
        width=384,
        depth=8,
        heads=6,
        kv_heads=2,
        head_dim=64,
        mlp_width=1536,
        vocab=32768,
        section=(8, 12, 12),
        tied=True,
    ),
)
BATCH, STEPS = 8, 2  # samples a step, and different steps, which come in turns
SIDES = ((112, 112), (168, 112), (224, 224), (336, 224), (224, 448), (448, 336), (560, 420))  # pixels
RATE, DECAY, BETAS, EPS, CLIP = 1e-4, 0.05, (0.9, 0.95), 1e-8, 1.0
SPECIAL = 1000  # text tokens are drawn above


def sample(pad: int, side: tuple[int, int], asked: int, answer: int, vocab: int, rng: np.random.Generator) -> Packed:
    """A picture, a question and an answer of so many tokens, as the processor would make them."""
    grid = (1, side[1] // 14, side[0] // 14)
    visual = grid[1] * grid[2] // 4
    tokens = rng.integers(SPECIAL, vocab, 2 + visual + asked + answer)
    tokens[1 : 1 + visual] = pad
    block = Block(start=1, grid=(1, grid[1] // 2, grid[2] // 2))
    positions, delta = MRope().place(len(tokens), [block])
    said = len(tokens) - answer
    return Packed(
        tokens=tokens,
        positions=positions,
        starts=np.array([0, len(tokens)]),
        deltas=np.array([delta]),
        patches=rng.standard_normal((grid[1] * grid[2], 1176), np.float32),
        grids=np.array([grid]),
        media=(
            Medium(kind="image", sequence=0, view=ImageView(original=side, processed=side), grid=grid, tokens=visual),
        ),
        runs=(Visual(start=1, length=visual, medium=0),),
        spans=(
            Span(start=0, stop=said, role="user", learned=False),
            Span(start=said, stop=len(tokens), role="assistant", learned=True),
        ),
    )


def samples(pictures: str, pad: int, vocab: int) -> list[Packed]:
    """The samples of all steps. Equal: 512 tokens with one picture of 224 x 224, half of them answer. Mixed: seven
    sizes of pictures, questions of 16 to 96 tokens, answers of 16 to 384 whose logarithm is uniform."""
    rng = np.random.default_rng(0)
    if pictures == "equal":
        return [sample(pad, (224, 224), 190, 256, vocab, rng) for _ in range(BATCH * STEPS)]
    return [
        sample(
            pad,
            SIDES[rng.integers(len(SIDES))],
            int(rng.integers(16, 97)),
            int(np.exp(rng.uniform(np.log(16), np.log(384)))),
            vocab,
            rng,
        )
        for _ in range(BATCH * STEPS)
    ]


@dataclass(frozen=True, kw_only=True)
class Made(NextToken):
    """Next tokens of samples that are processed already; a sample's id is its number."""

    pieces: tuple[Packed, ...]

    def read(self, processor: Any, sample: Sample, stage: Stage) -> Packed:
        return self.pieces[int(sample.id) % len(self.pieces)]

    def at(self, n: int) -> tuple[Sample, int]:
        """As the stage's data: sample number `n`."""
        return Sample(id=str(n), messages=(), set="made"), 0


def fresh(config: qwen2_vl.Config) -> Fresh:
    return Fresh(family=qwen2_vl.FAMILY, config=config, processor=tiny("qwen2_vl").processor, std=0.02)


def ours(
    model: Fresh,
    pieces: Sequence[Packed],
    dtype: str,
    *,
    batch: int = BATCH,
    device: str = "cpu",
    recomputed: bool = False,
) -> StageRun:
    """The trainer, ready for its first step."""
    task = Made(pieces=tuple(pieces))
    stage = Stage(
        name="throughput", steps=10**6, batch=batch, trainable=(("*", RATE),), data=task, task=task, warmup=0,
        schedule="constant", weight_decay=DECAY, betas=BETAS, eps=EPS, clip=CLIP, dtype=dtype, max_tokens=16384,
        checkpointing=recomputed,
    )  # fmt: skip
    run = Run(model=model, stages=(stage,), folder=Path(tempfile.gettempdir()), workers=0, device=device)
    loaded: Loaded = run.load()
    started = StageRun(run, stage, loaded, ranks=Ranks(torch.device(device)))
    started.network.train()
    return started


class Peer:
    """transformers' model and a plain training step.

    Args:
        folder: the weights.
        way: "fp32"; "bf16": bfloat16 weights; "autocast": float32 weights, products in bfloat16.
        attention: "sdpa" or "eager".
    """

    def __init__(self, folder: Path, way: str, attention: str) -> None:
        kind = torch.bfloat16 if way == "bf16" else torch.float32
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=kind, attn_implementation=attention)
        self.model.train()
        self.cast, self.label = way == "autocast", f"{way}, {attention}"
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)
        self.parameters = parameters

    def update(self, batch: dict[str, torch.Tensor]) -> float:
        """One step; returns the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.cast):
            loss = self.model(**batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return loss.item()


def padded(pieces: Sequence[Packed], pad: int) -> dict[str, torch.Tensor]:
    """Samples as transformers takes them, padded on the right."""
    longest = max(len(piece.tokens) for piece in pieces)
    shape = (len(pieces), longest)
    batch = {
        "input_ids": np.zeros(shape, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "labels": np.full(shape, -100),
        "mm_token_type_ids": np.zeros(shape, np.int64),
        "position_ids": np.zeros((3, *shape), np.int64),
    }
    for row, piece in enumerate(pieces):
        length, goal = len(piece.tokens), targets(piece)
        batch["input_ids"][row, :length] = piece.tokens
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, goal.places + 1] = goal.tokens
        batch["mm_token_type_ids"][row, :length] = piece.tokens == pad
        batch["position_ids"][:, row, :length] = piece.positions
    batch["pixel_values"] = np.concatenate([piece.patches for piece in pieces])
    batch["image_grid_thw"] = np.concatenate([piece.grids for piece in pieces])
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def check(model: Fresh, folder: Path, pieces: Sequence[Packed], pad: int) -> str:
    """Updates in float32 on both sides with the first samples of every step; leaves the program where losses differ."""
    few = [pieces[n * BATCH : n * BATCH + 2] for n in range(STEPS)]
    mine, other = ours(model, [piece for two in few for piece in two], "fp32", batch=2), Peer(folder, "fp32", "sdpa")
    worst = 0.0
    for number, two in enumerate(few):
        loss, theirs = mine.update(mine.feed.packs(number))[0].loss, other.update(padded(two, pad))
        worst = max(worst, abs(loss - theirs) / theirs)
    if worst > 2e-5:
        sys.exit(f"losses differ by {worst:.1e} (relative); nothing was timed.")
    return f"{worst:.0e}"


def turns(ways: Sequence[Callable[[int], object]], seconds: float) -> list[list[float]]:
    """Seconds of every way in every turn, for about `seconds` in all; all take the same samples, and who begins
    changes. The first turn of every step warms up."""
    spent: list[list[float]] = [[] for _ in ways]
    begun, turn = time.perf_counter(), 0
    while turn < 2 * STEPS or time.perf_counter() - begun < seconds * turn / (turn + 1):
        for place in range(len(ways)):
            which = (turn // STEPS + place) % len(ways)
            since = time.perf_counter()
            ways[which](turn % STEPS)
            if turn >= STEPS:
                spent[which].append(time.perf_counter() - since)
        turn += 1
    return spent


def beside(options: argparse.Namespace) -> str:
    """A row of the table: our step beside transformers'."""
    model = fresh(SMALL)
    pad = model.processor.tokenizer.special("<|image_pad|>")
    pieces = samples(options.pictures, pad, SMALL.language.vocab)
    shares = [pieces[n * BATCH : (n + 1) * BATCH] for n in range(STEPS)]
    batches = [padded(share, pad) for share in shares]
    tokens = sum(len(piece.tokens) for piece in pieces)
    empty = 1 - tokens / sum(batch["input_ids"].numel() for batch in batches)
    said = sum(targets(piece).weight for piece in pieces) / tokens
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        network = Run(model=model, stages=ours(model, pieces, "fp32").run.stages, folder=Path(name)).load().network
        save_folder(
            folder, family=model.family, config=model.config, network=network, processor=model.processor, generation={}
        )
        worst = check(model, folder, pieces, pad)
        peer = Peer(folder, "fp32" if options.dtype == "fp32" else options.way, options.attention)
    mine = ours(model, pieces, options.dtype)
    packs: list[StepPacks] = [mine.feed.packs(number) for number in range(STEPS)]
    own, theirs = turns([lambda n: mine.update(packs[n]), lambda n: peer.update(batches[n])], options.seconds)
    ratios = [b / a for a, b in zip(own, theirs, strict=True)]
    return (
        f"| {options.dtype} | {options.pictures} | {tokens / STEPS:.0f} | {empty:.0%} | {said:.0%} | {timed(own)} | "
        f"{peer.label} | {timed(theirs)} | **{median(ratios):.2f}x** | {min(ratios):.2f} to {max(ratios):.2f} | "
        f"{worst} | {len(theirs)} | {commit()} |"
    )


def timed(spent: Sequence[float]) -> str:
    """Samples a second, and a step in ms: medians over turns."""
    low, middle, high = (1000 * f(spent) for f in (min, median, max))
    return f"{BATCH / median(spent):.2f} | {middle:.0f} ({low:.0f} to {high:.0f})"


def alone(options: argparse.Namespace) -> str:
    """The row of the table of accelerators: size 2b, 8 samples of 1024 tokens with a picture of 448 x 448."""
    config = qwen2_vl.FAMILY.size("2b")
    model = fresh(config)
    pad = model.processor.tokenizer.special("<|image_pad|>")
    rng = np.random.default_rng(0)
    pieces = [sample(pad, (448, 448), 254, 512, config.language.vocab, rng) for _ in range(BATCH * STEPS)]
    mine = ours(model, pieces, "bf16", device=options.device, recomputed=options.recompute)
    packs = [mine.feed.packs(number) for number in range(STEPS)]
    for pack in packs:
        mine.update(pack)
    peak = peak_operations(mine.ranks.device, torch.bfloat16)
    meter = Meter(mine.network, peak=peak)
    spent = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < options.seconds or len(spent) < 10:
        pack = packs[len(spent) % STEPS]
        since = time.perf_counter()
        done, norm = mine.update(pack)  # its results are numbers, so it ends when the accelerator has
        spent.append(time.perf_counter() - since)
        meter.add(
            pack.sizes, samples=BATCH, learned=sum(w[0] for w in pack.weights), skipped=0, loss=done.loss, norm=norm
        )
    row = meter.row(meter.sums)
    name, again = torch.cuda.get_device_name(), "yes" if options.recompute else "no"
    return (
        f"| {name} | 2b | bf16 | {again} | {row['tokens_per_s']:.0f} | {timed(spent)} | **{row['mfu']:.1%}** of "
        f"{peak / 1e12:.0f} TFLOP/s | {row['memory_gb']:.1f} | {commit()} |"
    )


def commit() -> str:
    """The commit, with a star where timed files have changed since."""
    here = Path(__file__).parent.parent
    git = ["git", "-C", str(here)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "src", __file__], capture_output=True, text=True, check=False
    )
    return name.stdout.strip() + ("*" if changed.stdout.strip() else "")


def conditions() -> str:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), cpu)
    return (
        f"{time.strftime('%Y-%m-%d')}, {cpu}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end. Python {platform.python_version()}, "
        f"torch {torch.__version__}, "
        f"transformers {transformers.__version__}."
    )


BESIDE = (
    "| ours | pictures | tokens a step | padding there | learned | samples/s | ms a step | transformers | samples/s "
    "| ms a step | ratio | range | losses differ by | turns | commit |"
)
ALONE = "| accelerator | size | weights | recomputing | tokens/s | samples/s | ms a step | MFU | GB | commit |"
NONE = "No GPU was available when this was written; `--device cuda` fills a table here where there is one."


def written(out: Path, row: str) -> str:
    """The result file with this row in the place of one that it replaces."""
    known = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    kept = {key(line): line for line in (*known, row) if key(line)}
    beside = [kept[k] for k in sorted(kept) if k[0] in ("bf16", "fp32")]
    alone = [kept[k] for k in sorted(kept) if k[0] not in ("bf16", "fp32")]
    return "\n".join(
        [
            "# Training steps beside transformers\n",
            *textwrap.wrap(" ".join(__doc__.split("\n\n")[2].split()), 120),
            "",
            f"Shape: decoder {SMALL.language.width} x {SMALL.language.depth}, vocabulary {SMALL.language.vocab}, tower "
            f"{SMALL.vision.width} x {SMALL.vision.depth}; {BATCH} samples a step, {STEPS} different steps in turns.",
            *textwrap.wrap(" ".join((samples.__doc__ or "").split()), 120),
            "A ratio is transformers' time over ours for the same samples, the median over turns. Losses: the largest",
            "relative difference in some updates in float32. A star behind a commit: with changes since.\n",
            "    OMP_NUM_THREADS=2 python benchmarks/train_throughput.py --dtype bf16 --pictures mixed\n",
            f"The newest row: {conditions()}\n",
            *table(BESIDE, beside),
            "\n## On an accelerator\n",
            *(table(ALONE, alone) if alone else [NONE]),
            "",
        ]
    )


def table(head: str, rows: Sequence[str]) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|", *rows]


def key(line: str) -> tuple[str, ...]:
    """What a row is about; nothing where a line is no row."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if not line.startswith("| ") or cells[0] in ("ours", "accelerator"):
        return ()
    return (cells[0], cells[1], cells[7]) if cells[0] in ("bf16", "fp32") else (cells[0], cells[1], cells[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--pictures", choices=("mixed", "equal"), default="mixed")
    parser.add_argument("--way", choices=("autocast", "bf16"), default="autocast", help="of transformers in bf16")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="of transformers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recompute", action="store_true", help="on cuda: keep only what layers begin with")
    parser.add_argument("--seconds", type=float, default=45.0, help="of timing, about (default: 45)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is available here; nothing was timed.")
    row = beside(options) if options.device == "cpu" else alone(options)
    print(row)
    options.out.write_text(written(options.out, row), encoding="utf-8")


if __name__ == "__main__":
    main()
