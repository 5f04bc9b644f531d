"""Nano's network and processing, and conversations about scenes as packed batches."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from common import BUILD, GRID, VISION, WIDTH
from PIL import Image

from foveal.core.errors import ConfigError
from foveal.core.packed import Packed, Run, Span
from foveal.data.dense import Dense
from foveal.data.questions import Question
from foveal.data.scenes import Scene
from foveal.eval.metrics import Mentions
from foveal.families.qwen2_vl import FAMILY, Config
from foveal.families.vlm import VLM
from foveal.language.decoder import DecoderConfig
from foveal.processing.processor import Processor
from foveal.processing.tokens import Tokenizer
from foveal.train.guide import Guide, guide_loss

VOCABULARY = 1600
"""Rows of the embedding: the tokenizer's 1577 entries, rounded up to a multiple of 64."""

EARLY_THETA = 20.0
"""Base of the rotary angles up to the stage `fine`; see LOG.md for why the last stage leaves it."""

LANGUAGE = DecoderConfig(
    width=WIDTH,
    depth=5,
    heads=4,
    kv_heads=2,
    head_dim=64,
    mlp_width=704,
    vocab=VOCABULARY,
    # The height's and the width's angles hardly turn over a conversation: a name finds its picture by what it shows,
    # from any distance. Where that is, the visual tokens say themselves (see foveal.train.dense).
    theta=10_000.0,
    section=(8, 12, 12),
    tied=True,
    context=2048,
)
CONFIG = Config(vision=VISION, language=LANGUAGE)


def processor() -> Processor:
    made = FAMILY.processing(CONFIG)
    return Processor(
        tokenizer=Tokenizer.from_file(BUILD / "tokenizer.json"),
        processing=replace(made, vision=replace(made.vision, resize=GRID)),
        context_tokens=LANGUAGE.context,
    )


def network(theta: float = LANGUAGE.theta) -> VLM:
    return FAMILY.build(replace(CONFIG, language=replace(LANGUAGE, theta=theta)))


def messages(scene: Scene, questions: Sequence[Question], text_first: bool = False) -> list[dict]:
    """A conversation: the picture with the first question (after it when `text_first`), then the others."""
    turns = []
    for number, question in enumerate(questions):
        content: list[dict] = [{"type": "text", "text": question.text}]
        if number == 0:
            picture = {"type": "image", "image": Image.fromarray(scene.image)}
            content = [*content, picture] if text_first else [picture, *content]
        turns.append({"role": "user", "content": content})
        answer = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "box", "box": part}
            for part in question.answer
        ]
        turns.append({"role": "assistant", "content": answer})
    return turns


def cut(pack: Packed, length: int) -> Packed | None:
    """The first `length` tokens of a pack of one sequence; None when it has fewer.

    Equal lengths let a step's conversations attend as one batch.
    """
    if len(pack.tokens) < length:
        return None
    return replace(
        pack,
        tokens=pack.tokens[:length],
        positions=pack.positions[:, :length],
        starts=np.array([0, length], np.int64),
        runs=tuple(Run(start=r.start, length=r.length, medium=r.medium) for r in pack.runs),
        spans=tuple(
            Span(start=s.start, stop=min(s.stop, length), role=s.role, learned=s.learned)
            for s in pack.spans
            if s.start < length
        ),
    )


def learned_places(pack: Packed) -> np.ndarray:
    """Tokens after which a learned token comes."""
    starts = set(pack.starts[:-1].tolist())
    rows = [i - 1 for s in pack.spans if s.learned for i in range(s.start, s.stop) if i not in starts]
    return np.array(rows, np.int64)


def name_embeddings(vlm: VLM, names: Sequence[str]) -> torch.Tensor:
    """One row a name [C, D]: the mean of its tokens' embeddings, as they stand after a space."""
    tokenizer = processor_tokenizer()
    ids = [tokenizer.encode_text(f" {name}") for name in names]
    flat = torch.tensor([i for row in ids for i in row])
    rows = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(row) for row in ids]))
    share = torch.tensor([1 / len(row) for row in ids])[rows]
    every = vlm.language.embed(flat).float() * share[:, None]
    return torch.zeros(len(ids), every.shape[1]).index_add(0, rows, every)


def guide_of(pack: Packed, target: Dense, index: Mapping[str, int], mentions: Mentions) -> Guide:
    """The last token of every name that a conversation mentions, and the cells that show things of that name.

    `pack` has one picture a conversation, in the order of `target`'s cells; `index` is the names' class.
    """
    tokenizer = processor_tokenizer()
    cells = np.cumsum([0, *(run.length for run in pack.runs)])
    things = [target.thing[a:b] for a, b in itertools.pairwise(cells)]
    queries, rows = [], []
    for span in pack.spans:
        sequence = int(np.searchsorted(pack.starts, span.start, side="right")) - 1
        plain = [t for t in range(span.start, span.stop) if int(pack.tokens[t]) not in tokenizer.special_ids]
        words = [tokenizer.token_bytes(int(pack.tokens[t])) for t in plain]
        ends = np.cumsum([len(word) for word in words])
        text = b"".join(words).decode("utf-8", "replace")
        if not text.isascii():  # offsets below count characters; scenes are asked about in English
            raise ConfigError(f"a conversation says {text!r}; guides are made for ASCII text only.")
        run = pack.runs[sequence]
        for name, end in mentions.places(text):
            wanted = np.zeros(len(pack.tokens), bool)
            wanted[run.start : run.start + run.length] = things[sequence] == index[name]
            query = plain[int(np.searchsorted(ends, end))]
            wanted[query + 1 :] = False
            queries.append(query)
            rows.append(wanted)
    return Guide(queries=np.array(queries, np.int64), wanted=np.array(rows, bool).reshape(-1, len(pack.tokens)))


@cache
def processor_tokenizer() -> Tokenizer:
    return processor().tokenizer


@cache
def _kinds() -> tuple[np.ndarray, np.ndarray]:
    """For every token: is it a digit; is it a sign between numbers."""
    tokenizer = processor_tokenizer()
    plain = [t for t in range(tokenizer.vocab_size) if t not in tokenizer.special_ids]
    digit, sign = np.zeros(VOCABULARY, bool), np.zeros(VOCABULARY, bool)
    for token in plain:
        text = tokenizer.token_bytes(token)
        digit[token] = text.strip().isdigit()
        sign[token] = bool(text) and not text.strip(b"(), ")
    return digit, sign


def token_weights(
    tokens: np.ndarray, starts: Sequence[int], openings: Sequence[int] = (), deciding: Sequence[str] = ()
) -> np.ndarray:
    """Weight of every token of a pack in the loss; `starts` are the boundaries of its conversations.

    A word that nobody has said yet in a conversation counts three times: a name that stands in an earlier answer can
    be copied, one that does not has to be seen.

    A box takes about 20 tokens and a name two: without weights, numbers rule. The first two digits of a number say
    where a box lies; the third is less than a model of this size can see, and the signs between say nothing.

    With `openings`, the first tokens of answers, what decides an answer counts three times: they (yes or no, a box or
    a refusal), a number's first digit, and the words `deciding`, such as the space before a number ("1" or "no"?).
    """
    digit, sign = _kinds()
    place = np.zeros(len(tokens), np.int64)  # of a digit in its number, from 0
    for i in np.flatnonzero(digit[tokens]):
        place[i] = place[i - 1] + 1 if i and digit[tokens[i - 1]] else 0
    weights = np.ones(len(tokens), np.float32)
    first = np.zeros(len(tokens), bool)
    for start, stop in itertools.pairwise(starts):
        first[start + np.unique(tokens[start:stop], return_index=True)[1]] = True
    weights[first] = 3.0
    weights[digit[tokens]] = 1.0
    weights[sign[tokens]] = 0.1
    weights[digit[tokens] & (place > 1)] = 0.1
    if len(openings):
        weights[list(openings)] = 3.0
        tokenizer = processor_tokenizer()
        words = [tokenizer.encode_text(word)[0] for word in deciding]
        weights[np.isin(tokens, words) | (digit[tokens] & (place == 0))] = 3.0
    return weights


def openings(pack: Packed) -> list[int]:
    """Places of the first tokens of answers."""
    return [s.start for s in pack.spans if s.learned and s.start < s.stop]


def answer_loss(
    vlm: VLM, pack: Packed, deciding: Sequence[str] = (), guide: Guide | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Cross-entropy of the answers' tokens; the visual tokens; and figures.

    `deciding` words, and whatever else decides an answer, get more weight (see `token_weights`); `guide` says where
    two heads of the second layer look.
    """
    places = learned_places(pack)
    out = vlm(pack, keep=("adapter",) if guide is None else ("adapter", "layers.0"), at=places)
    wanted = torch.from_numpy(pack.tokens[places + 1])
    scores = out.logits.float()
    each = F.cross_entropy(scores, wanted, reduction="none")
    first = openings(pack)
    weights = token_weights(pack.tokens, pack.starts.tolist(), first if deciding else (), deciding)
    weight = torch.from_numpy(weights[places + 1])
    value = (each * weight).sum() / weight.sum()
    hits = (scores.argmax(-1) == wanted).float()
    opens = torch.from_numpy(np.isin(places + 1, first))
    figures = {"answer_loss": value.item(), "answer_tokens": hits.mean().item(), "opened": hits[opens].mean().item()}
    if guide is not None:
        positions, starts = torch.from_numpy(pack.positions), pack.starts.tolist()
        missed, figures["guided"] = guide_loss(vlm.language, 1, (0, 1), out.kept["layers.0"], positions, starts, guide)
        value = value + 0.3 * missed
    return value, out.kept["adapter"], figures
