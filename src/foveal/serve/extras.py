"""POST /v1/embeddings, /tokenize and /detokenize, and the entry of GET /v1/models."""

import asyncio
import base64

import numpy as np

from foveal.core.errors import BudgetError, InputError
from foveal.serve.answers import media_json
from foveal.serve.conversation import conversation
from foveal.serve.schema import (
    DetokenizeRequest,
    EmbeddingRequest,
    ImageUrl,
    ImageUrlPart,
    TextInput,
    TokenizeRequest,
)
from foveal.serve.service import Service
from foveal.serve.work import Asked, Json, check_model, ignored


async def embeddings(service: Service, asked: Asked) -> Json:
    """POST /v1/embeddings"""
    request = asked.read(EmbeddingRequest)
    check_model(service, request.model)
    items = [request.input] if isinstance(request.input, str) else list(request.input)
    texts = {
        i: v.text if isinstance(v, TextInput) else v for i, v in enumerate(items) if isinstance(v, str | TextInput)
    }
    urls = {
        i: v.image_url.url if isinstance(v.image_url, ImageUrl) else v.image_url
        for i, v in enumerate(items)
        if isinstance(v, ImageUrlPart)
    }
    if any(isinstance(v, ImageUrlPart) and (v.min_pixels or v.max_pixels) for v in items):
        raise InputError("pictures are embedded at the model's own size; leave min_pixels and max_pixels out.")
    most = service.options.limit_mm_per_prompt.get("image", service.options.budget.media)
    if len(urls) > most:
        raise BudgetError(f"{len(urls)} images in one request; this server takes {most}.")
    rows: dict[int, np.ndarray] = {}
    tokens = 0
    if texts:
        vectors, tokens = await service.vectors_of_text(list(texts.values()))
        rows |= dict(zip(texts, vectors, strict=True))
    if urls:
        rows |= dict(zip(urls, await service.vectors_of_pictures(list(urls.values())), strict=True))
    size = len(rows[0])
    if request.dimensions not in (None, size):
        raise InputError(f"dimensions is {request.dimensions}; this model's vectors have {size}.")
    coded = request.encoding_format == "base64"
    return {
        "object": "list",
        "model": service.name,
        "data": [{"object": "embedding", "index": i, "embedding": _vector(rows[i], coded)} for i in range(len(items))],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "foveal": {"ignored": ignored(request)},
    }


def _vector(row: np.ndarray, coded: bool) -> str | list[float]:
    whole = row.astype("<f4")
    return base64.b64encode(whole.tobytes()).decode() if coded else [float(v) for v in whole]


async def tokenize(service: Service, asked: Asked) -> Json:
    """POST /tokenize: what a text or a conversation with its media costs, exactly."""
    request = asked.read(TokenizeRequest)
    check_model(service, request.model)
    tokenizer = service.talker.tokenizer
    if (request.prompt is None) == (request.messages is None):
        raise InputError("give either a prompt or messages.")
    media: list[Json] = []
    if request.prompt is not None:
        tokens = await asyncio.to_thread(tokenizer.encode_text, request.prompt)
    else:
        talk = conversation(request, service.options, service.talker)
        packed = await service.packed(talk, generate=request.add_generation_prompt, count=True)
        tokens, media = packed.tokens.tolist(), media_json(packed, talk.asked)
    names = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in tokens] if request.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": service.context_tokens,
        "tokens": tokens,
        "token_strs": names,
        "media": media,
    }


async def detokenize(service: Service, asked: Asked) -> Json:
    """POST /detokenize: the text of tokens; those of media are written as the names of their pads."""
    request = asked.read(DetokenizeRequest)
    check_model(service, request.model)
    return {"prompt": await asyncio.to_thread(service.talker.tokenizer.decode, list(request.tokens))}


def model_card(service: Service) -> Json:
    """The entry of GET /v1/models."""
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "foveal",
        "max_model_len": service.context_tokens,
        "foveal": service.facts(),
    }
