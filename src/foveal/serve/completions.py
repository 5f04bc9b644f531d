"""POST /v1/completions"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from foveal.core.errors import InputError
from foveal.serve.answers import Choice, flat_scores
from foveal.serve.form import form
from foveal.serve.schema import MOST_CHOICES, CompletionRequest
from foveal.serve.service import Service
from foveal.serve.work import Asked, Json, Work, check_form, check_model, report, sampling_of, usage

USUAL_TOKENS = 16
"""OpenAI's length of a completion when nobody says."""


async def completion(service: Service, asked: Asked) -> Json | AsyncIterator[Json]:
    """The continuation of one text or several, or its chunks if it is to be streamed."""
    request = asked.read(CompletionRequest)
    check_model(service, request.model)
    processor = service.talker
    prompts: list[Any] = [request.prompt]
    if isinstance(request.prompt, list) and isinstance(request.prompt[0], str | list):
        prompts = list(request.prompt)
    sampling = sampling_of(service, request, max_tokens=request.max_tokens or USUAL_TOKENS, logprobs=request.logprobs)
    grammar = form(request, processor, service.vocabulary.specials, None)
    await check_form(service, grammar)
    count = request.n or 1
    if len(prompts) * count > MOST_CHOICES:
        raise InputError(f"{len(prompts)} prompts with {count} answers each; {MOST_CHOICES} answers are the most.")
    asked.place.grow(len(prompts) * count - 1)
    works = []
    raw = request.skip_special_tokens is False or grammar is not None
    for prompt in prompts:
        packed = await asyncio.to_thread(service.plain, prompt)
        settled = service.settled(sampling, packed)
        choices = [
            Choice(processor, settled, packed, service.stop_ids, raw=raw, functions=frozenset()) for _ in range(count)
        ]
        works.append(Work(packed=packed, sampling=settled, grammar=grammar, choices=choices))
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }
    told = {"foveal": report(request, works[0].sampling, works[0].packed, None)}
    if request.stream:
        return _completion_stream(service, asked, request, works, head, told)
    texts = await asyncio.gather(*(work.texts(service, asked) for work in works))
    chosen = [(c, text) for w, said in zip(works, texts, strict=True) for c, text in zip(w.choices, said, strict=True)]
    return {
        **head,
        "choices": [
            {
                "index": number,
                "text": text,
                "logprobs": None if request.logprobs is None else flat_scores(choice.scores, 0),
                "finish_reason": choice.finish_reason,
            }
            for number, (choice, text) in enumerate(chosen)
        ],
        "usage": usage(works),
        **told,
    }


async def _completion_stream(
    service: Service, asked: Asked, request: CompletionRequest, works: list[Work], head: Json, told: Json
) -> AsyncIterator[Json]:
    wanted = request.stream_options is not None and bool(request.stream_options.include_usage)
    said: asyncio.Queue[Json | Exception | None] = asyncio.Queue()
    count = len(works[0].choices)

    async def follow(number: int, work: Work) -> None:
        lengths = [0] * count
        try:
            async with aclosing(work.run(service, asked)) as events:
                async for index, piece, _ in events:
                    choice, scores = work.choices[index], None
                    if request.logprobs is not None:
                        scores = flat_scores(choice.scores[-1:], lengths[index])
                    lengths[index] += len(piece)
                    if piece or choice.ended or scores:
                        one = {"index": number * count + index, "text": piece, "logprobs": scores}
                        one["finish_reason"] = choice.finish_reason
                        said.put_nowait({**head, "choices": [one], **({"usage": None} if wanted else {})})
            said.put_nowait(None)
        except Exception as error:
            said.put_nowait(error)

    tasks = [asyncio.create_task(follow(number, work)) for number, work in enumerate(works)]
    left, first = len(tasks), True
    try:
        while left:
            item = await said.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
                continue
            yield {**item, **told} if first else item
            first = False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if wanted:
        yield {**head, "choices": [], "usage": usage(works)}
