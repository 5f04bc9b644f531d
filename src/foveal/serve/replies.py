"""What answers look like, for the OpenAPI document. Fields that OpenAI does not have are ours and say so."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Reply):
    """What went wrong: words for people, and `code` for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Reply):
    """Every answer that is no success."""

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
    """A function and the text of its arguments, a JSON object."""

    name: str
    arguments: str


class CallReply(Reply):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: Called


class MessageReply(Reply):
    """What the assistant says, with boxes and points where there are some (ours)."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[CallReply] | None = None
    boxes: list[Region] | None = None
    points: list[Place] | None = None


class TokenScore(Reply):
    """A token with its log-probability; `bytes` are those of its text."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenScore(TokenScore):
    """A token of the answer, and the best ones beside it."""

    top_logprobs: list[TokenScore]


class Scores(Reply):
    """The tokens of an answer."""

    content: list[ChosenScore]
    refusal: None


Reason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Reply):
    """One of n answers."""

    index: int
    message: MessageReply
    logprobs: Scores | None
    finish_reason: Reason


class CachedTokens(Reply):
    """Tokens of the prompt that were not computed again."""

    cached_tokens: int


class Usage(Reply):
    """Tokens; `visual_tokens` (ours) are part of those of the prompt."""

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
    """A whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    foveal: Done


class FlatScores(Reply):
    """Scores in the older form of completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply):
    """One continuation."""

    index: int
    text: str
    logprobs: FlatScores | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(Reply):
    """All continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    foveal: Done


class Embedding(Reply):
    """One vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    """Tokens that the text tower read, SigLIP's padding included. Pictures have none."""

    prompt_tokens: int
    total_tokens: int


class Ignored(Reply):
    """Fields of the request that changed nothing."""

    ignored: list[str]


class EmbeddingReply(Reply):
    """Vectors in the order of the input."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    foveal: Ignored


class TokenizeReply(Reply):
    """Tokens of a prompt, and what each medium takes."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None
    media: list[MediumReply]


class DetokenizeReply(Reply):
    """The text of tokens."""

    prompt: str


class ModelCard(Reply):
    """The model that is served, with its limits (ours)."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    foveal: dict[str, Any]


class ModelList(Reply):
    """All models: one."""

    object: Literal["list"]
    data: list[ModelCard]


class Alive(Reply):
    """The process answers."""

    alive: Literal[True]


class Ready(Reply):
    """Whether requests are taken, and how the engine is."""

    ready: bool
    engine: str
