"""POST /v1/chat/completions"""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from foveal.core.errors import InputError
from foveal.serve.answers import Choice
from foveal.serve.conversation import conversation, tool_names
from foveal.serve.form import form
from foveal.serve.schema import ChatRequest
from foveal.serve.service import Service
from foveal.serve.work import Asked, Json, Work, check_form, check_model, report, sampling_of, usage


async def chat(service: Service, asked: Asked) -> Json | AsyncIterator[Json]:
    """The answer, or its chunks if it is to be streamed."""
    request = asked.read(ChatRequest)
    check_model(service, request.model)
    processor = service.talker
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InputError("max_tokens and max_completion_tokens both bound the answer; give one.")
    if request.top_logprobs is not None and not request.logprobs:
        raise InputError("top_logprobs needs logprobs: true.")
    talk = conversation(request, service.options, processor)
    functions = tool_names(request)
    sampling = sampling_of(
        service,
        request,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    boxes = request.structured_outputs is not None and request.structured_outputs.boxes is not None
    if not boxes:
        # Before anything is opened: what is refused costs no decoding.
        grammar = form(request, processor, service.vocabulary.specials, None)
        await check_form(service, grammar)
    asked.place.grow((request.n or 1) - 1)
    packed = await service.packed(talk)
    if boxes:
        view = packed.media[-1].view if packed.media else None
        grammar = form(request, processor, service.vocabulary.specials, view)
        await check_form(service, grammar)
    sampling = service.settled(sampling, packed)
    raw = request.skip_special_tokens is False or (grammar is not None and not boxes)
    choices = [
        Choice(processor, sampling, packed, service.stop_ids, raw=raw, functions=functions)
        for _ in range(request.n or 1)
    ]
    work = Work(packed=packed, sampling=sampling, grammar=grammar, choices=choices)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}
    told = {"foveal": report(request, sampling, packed, talk)}
    if request.stream:
        return _chat_stream(service, asked, request, work, head, told)
    texts = await work.texts(service, asked)
    return {
        **head,
        "object": "chat.completion",
        "choices": [
            {
                "index": number,
                "message": choice.message(text),
                "logprobs": {"content": choice.scores, "refusal": None} if request.logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for number, (choice, text) in enumerate(zip(choices, texts, strict=True))
        ],
        "usage": usage([work]),
        **told,
    }


async def _chat_stream(
    service: Service, asked: Asked, request: ChatRequest, work: Work, head: Json, told: Json
) -> AsyncIterator[Json]:
    wanted = request.stream_options is not None and bool(request.stream_options.include_usage)
    head = {**head, "object": "chat.completion.chunk"}
    begun: set[int] = set()

    def chunk(index: int, delta: Json, *, reason: str | None = None, scores: Sequence[Json] | None = None) -> Json:
        logprobs = {"content": list(scores), "refusal": None} if scores else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **({"usage": None} if wanted else {})}

    told_at = 0
    unsent: list[list[Json]] = [[] for _ in work.choices]
    async with aclosing(work.run(service, asked)) as said:
        async for index, piece, _ in said:
            choice = work.choices[index]
            if index not in begun:
                begun.add(index)
                opening = chunk(index, {"role": "assistant", "content": ""})
                yield {**opening, **told} if not told_at else opening
                told_at = 1
            if request.logprobs and choice.scores:
                unsent[index] += choice.scores[len(choice.scores) - 1 :]
            if piece:
                yield chunk(index, {"content": piece}, scores=unsent[index])
                unsent[index] = []
            if choice.ended:
                calls = [{"index": at, **call.to_json()} for at, call in enumerate(choice.calls)]
                last = {**({"tool_calls": calls} if calls else {}), **choice.regions()}
                yield chunk(index, last, reason=choice.finish_reason, scores=unsent[index])
                unsent[index] = []
    if wanted:
        yield {**head, "choices": [], "usage": usage([work])}
