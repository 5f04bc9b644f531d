"""What requests may say. Every field is checked and bounded, and no field that is not listed here passes.

The form is OpenAI's; beside it stand vLLM's names for what OpenAI does not have, and this project's knobs of media.
Fields that OpenAI's clients send and that change nothing here are listed in `IGNORED` and named in each answer.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 8
MOST_LOGPROBS = 20
MOST_TOOLS = 64
MOST_MESSAGES = 2048
MOST_PARTS = 1024
MOST_INPUTS = 256
MOST_IDS = 1_000_000
WHOLE = 2**31 - 1

IGNORED = ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user")
"""Fields about the caller's account, which a server of one's own has no use for."""


class Strict(BaseModel):
    """No unknown field, no silent conversion, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Pixels: TypeAlias = Annotated[int, Field(ge=1, le=WHOLE)]
Frames: TypeAlias = Annotated[int, Field(ge=1, le=100_000)]
Rate: TypeAlias = Annotated[float, Field(gt=0, le=240)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
Address: TypeAlias = Annotated[str, Field(min_length=1, description="a data: URL, or http(s):// or file:// if allowed")]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
Label: TypeAlias = Annotated[str, Field(min_length=1, max_length=128)]
Choice: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=512)]
Id: TypeAlias = Annotated[int, Field(ge=0, le=WHOLE)]


class ImageUrl(Strict):
    """OpenAI's form; `low` detail shows at most 512 x 512 pixels."""

    url: Address
    detail: Literal["auto", "low", "high"] | None = None


class VideoUrl(Strict):
    """vLLM's form."""

    url: Address


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrlPart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl | Address
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


class ImagePart(Strict):
    """Qwen's form."""

    type: Literal["image"]
    image: Address
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


class VideoKnobs(Strict):
    """How a video is sampled and resized."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    total_pixels: Annotated[int, Field(ge=1, le=2**40)] | None = None
    fps: Rate | None = None
    nframes: Frames | None = None
    max_frames: Frames | None = None
    video_start: Seconds | None = None
    video_end: Seconds | None = None


class VideoUrlPart(VideoKnobs):
    """A video file."""

    type: Literal["video_url"]
    video_url: VideoUrl | Address


class VideoPart(VideoKnobs):
    """Qwen's form: a file, or its frames as a list of pictures that were taken `sample_fps` times a second."""

    type: Literal["video"]
    video: Address | Annotated[list[Address], Field(min_length=1, max_length=MOST_PARTS)]
    sample_fps: Rate | None = None


Part: TypeAlias = Annotated[TextPart | ImageUrlPart | ImagePart | VideoUrlPart | VideoPart, Field(discriminator="type")]
Words: TypeAlias = str | Annotated[list[TextPart], Field(min_length=1, max_length=MOST_PARTS)]


class CalledFunction(Strict):
    """A function and the text of its arguments."""

    name: Name
    arguments: str


class ToolCall(Strict):
    """A call that the assistant made earlier."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(Strict):
    """What the operator says."""

    role: Literal["system", "developer"]
    content: Words


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=MOST_PARTS)]


class AssistantMessage(Strict):
    """An earlier answer, also as this server or OpenAI's client wrote it. `boxes` and `points` are not read again."""

    role: Literal["assistant"]
    content: Words | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    boxes: list[Any] | None = None
    points: list[Any] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MOST_TOOLS)] | None = None


class ToolMessage(Strict):
    """What a tool answered to an earlier call."""

    role: Literal["tool"]
    content: Words
    tool_call_id: Name


Message: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
Messages: TypeAlias = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]


class Function(Strict):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The function to call."""

    name: FunctionName


class NamedTool(Strict):
    """The tool to call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    """A schema with its name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Strict):
    """No form."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format: TypeAlias = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class BoxForm(Strict):
    """Boxes as the family writes them: `labels` bounds what they may be called, `most` how many there are."""

    labels: Annotated[list[Label], Field(min_length=1, max_length=256)] | None = None
    most: Annotated[int, Field(ge=1, le=256)] = 32


class StructuredOutputs(Strict):
    """The form of the answer, in vLLM's words, and `boxes`. One of them."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    choice: Annotated[list[Choice], Field(min_length=1, max_length=256)] | None = None
    boxes: BoxForm | None = None


class StreamOptions(Strict):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class MediaKnobs(Strict):
    """Settings for every medium of the request whose own part does not say otherwise."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    fps: Rate | None = None
    nframes: Frames | None = None
    max_frames: Frames | None = None


class Said(Strict):
    """What chat and completion share: how an answer is chosen, and what is told about it."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=WHOLE)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: (
        Annotated[bool, Field(description="false: the answer's text keeps the model's own tags and coordinates")] | None
    ) = None
    structured_outputs: StructuredOutputs | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(Said):
    """POST /v1/chat/completions"""

    messages: Messages
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    fps: Rate | None = None
    nframes: Frames | None = None
    max_frames: Frames | None = None
    mm_processor_kwargs: MediaKnobs | None = None
    max_tokens: Annotated[int, Field(ge=1, le=WHOLE)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=WHOLE)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None


Ids: TypeAlias = Annotated[list[Id], Field(min_length=1, max_length=MOST_IDS)]
Prompt: TypeAlias = Annotated[str, Field(min_length=1)]
Prompts: TypeAlias = Annotated[list[Prompt], Field(min_length=1, max_length=MOST_CHOICES)]


class CompletionRequest(Said):
    """POST /v1/completions"""

    prompt: Prompt | Ids | Prompts | Annotated[list[Ids], Field(min_length=1, max_length=MOST_CHOICES)]
    max_tokens: Annotated[int, Field(ge=1, le=WHOLE)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


class TextInput(Strict):
    """A text to embed."""

    type: Literal["text"]
    text: str


EmbeddingInput: TypeAlias = str | Annotated[TextInput | ImageUrlPart, Field(discriminator="type")]


class EmbeddingRequest(Strict):
    """POST /v1/embeddings"""

    model: Name | None = None
    input: str | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=WHOLE)] | None = None
    user: str | None = None


class TokenizeRequest(Strict):
    """A text, or a conversation with its media."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_generation_prompt: bool = True
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    fps: Rate | None = None
    nframes: Frames | None = None
    max_frames: Frames | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: Name | None = None
    tokens: Annotated[list[Id], Field(max_length=MOST_IDS)]
