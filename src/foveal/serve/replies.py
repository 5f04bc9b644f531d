"""What answers look like, for the OpenAPI document. Fields that OpenAI does not have are ours and say so."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Reply):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Reply):
    error: Problem


class Region(Reply):
    """A box in pixels of the original picture (ours)."""

    label: str
    box_px: list[float]
    points_px: list[float] | None = None
    image: int
    processed_size: list[int]
    flags: list[str]


class Place(Reply):
    """A point in pixels of the original picture (ours)."""

    label: str
    point_px: list[float]
    image: int
    processed_size: list[int]
    flags: list[str]


class Called(Reply):
    name: str
    arguments: str


class CallReply(Reply):
    id: str
    type: Literal["function"]
    function: Called


class MessageReply(Reply):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[CallReply] | None = None
    boxes: list[Region] | None = None
    points: list[Place] | None = None


class TokenScore(Reply):
    token: str
    logprob: float
    bytes: list[int]


class ChosenScore(TokenScore):
    top_logprobs: list[TokenScore]


class Scores(Reply):
    content: list[ChosenScore]
    refusal: None


Reason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Reply):
    index: int
    message: MessageReply
    logprobs: Scores | None
    finish_reason: Reason


class CachedTokens(Reply):
    cached_tokens: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    visual_tokens: int


class MediumReply(Reply):
    """What the model saw of an image or video, and the settings in force (ours)."""

    kind: Literal["image", "video"]
    original_size: list[int]
    processed_size: list[int]
    tokens: int
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    fps: float | None = None
    nframes: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    sample_fps: float | None = None
    frames: int | None = None
    times_s: list[float] | None = None


class Done(Reply):
    """What was done with the request (ours)."""

    media: list[MediumReply]
    sampling: dict[str, Any]
    ignored: list[str]


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    foveal: Done


class FlatScores(Reply):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: FlatScores | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    foveal: Done


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class Ignored(Reply):
    ignored: list[str]


class EmbeddingReply(Reply):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    foveal: Ignored


class TokenizeReply(Reply):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None
    media: list[MediumReply]


class DetokenizeReply(Reply):
    prompt: str


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    foveal: dict[str, Any]


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]


class Alive(Reply):
    alive: Literal[True]


class Ready(Reply):
    ready: bool
    engine: str
