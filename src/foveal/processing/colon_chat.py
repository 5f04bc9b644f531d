"""DeepSeek-VL2's chat format: who speaks, a colon, and what they say.

<｜begin▁of▁sentence｜><|User|>: <image>
What is this?

<|Assistant|>:A bicycle.<｜end▁of▁sentence｜>

As released, every turn is split into tokens by itself: a question goes up to the colon after `<|Assistant|>`, and the
answer begins right behind it, without the space that the release shows when it prints a conversation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from foveal.core.errors import InputError
from foveal.processing.chat import BoxWriter
from foveal.processing.messages import AskPart, BoxPart, ImagePart, Message, TextPart
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment, TextSegment


@dataclass(frozen=True, kw_only=True)
class ColonChat:
    """The chat format of DeepSeek-VL2.

    Attributes:
        begin: the token at the start of a conversation.
        end: the token after an answer.
        user, assistant: the tokens that name a speaker.
        image: the token in the place of each visual token.
        ref: tokens around the words for something whose place is asked for.
        grounding: the token that asks for places in a description.
        asks: it has marks for questions about regions.
        markers: tokens around each image, for planning: none.
        learn_prompt: training learns to say the questions too, but never visual tokens (`mask_prompt: false` of the
            releases' processor_config.json).
    """

    begin: str = "<｜begin▁of▁sentence｜>"
    end: str = "<｜end▁of▁sentence｜>"
    user: str = "<|User|>"
    assistant: str = "<|Assistant|>"
    image: str = "<image>"
    ref: tuple[str, str] = ("<|ref|>", "<|/ref|>")
    grounding: str = "<|grounding|>"
    asks: bool = True
    markers: int = 0
    learn_prompt: bool = False

    @property
    def specials(self) -> tuple[str, ...]:
        """Special tokens that it needs in the vocabulary."""
        return self.begin, self.end, self.user, self.assistant, self.image, *self.ref, self.grounding

    @property
    def pads(self) -> tuple[str, str | None]:
        """The token that stands for one visual token of an image; there are no videos."""
        return self.image, None

    @property
    def config_ids(self) -> Mapping[str, str]:
        """config.json states no ids of these tokens."""
        return {}

    def template(self) -> None:
        """The releases have no Jinja template."""

    def render(self, messages: Sequence[Message], *, boxes: BoxWriter, generate: bool) -> list[Segment]:
        """Segments of a conversation. What the assistant says, with the token that ends it, is learned.

        A system message comes first or not at all. With `generate`, a conversation that ends with words of the
        assistant is to be continued there: the token that ends a turn is left out, as the release does.

        Raises:
            InputError: a role that this format does not have, a system message in a later place, or an image in
                words of the assistant or the system.
        """
        # The first token of a sequence is nobody's to predict; it is marked as in the release's labels.
        segments: list[Segment] = [SpecialSegment(name=self.begin, role="system", learned=True)]
        media = 0
        for turn, message in enumerate(messages):
            content = _stripped(list(self._content(message, boxes, media)))
            media += sum(isinstance(s, MediumSegment) for s in content)
            last = turn == len(messages) - 1
            segments += self._turn(message, turn, content, last=last, generate=generate)
        if generate and messages[-1].role == "system":
            segments += self._ask(len(messages))
        return segments

    def _turn(
        self, message: Message, turn: int, content: list[Segment], *, last: bool, generate: bool
    ) -> Iterator[Segment]:
        role, shown = message.role, any(isinstance(s, MediumSegment) for s in content)
        if role == "tool" or (role == "system" and turn):
            what = "no system message after others" if role == "system" else "no turns of tools"
            raise InputError(
                f"messages[{turn}]: DeepSeek-VL2's chat format has {what}; write what it says into a user's turn."
            )
        if role != "user" and shown:
            raise InputError(
                f"messages[{turn}]: an image in the {role}'s words; this format has them in questions only."
            )
        learned = role == "assistant" or self.learn_prompt
        for segment in self._question(content) if role == "user" else content:
            pad = isinstance(segment, MediumSegment)
            yield replace(segment, role=role, turn=turn, learned=learned and not pad)
        if role == "user" and (generate or not last):
            yield from self._ask(turn + 1)
        if role == "assistant" and not (last and generate):
            yield SpecialSegment(name=self.end, role=role, turn=turn, learned=True)

    def _question(self, content: list[Segment]) -> list[Segment]:
        """A user's turn; an empty one is the name and the colon only."""
        speaker = SpecialSegment(name=self.user)
        if not content:
            return [speaker, TextSegment(text=":")]
        return [speaker, TextSegment(text=": "), *content, TextSegment(text="\n\n")]

    def _ask(self, turn: int) -> Iterator[Segment]:
        """What comes before an answer; its colon is a token of its own."""
        learned = self.learn_prompt
        yield SpecialSegment(name=self.assistant, role="assistant", turn=turn, learned=learned)
        yield TextSegment(text=":", alone=True, role="assistant", turn=turn, learned=learned)

    def _content(self, message: Message, boxes: BoxWriter, media: int) -> Iterator[Segment]:
        for kind, group in groupby(message.parts, key=type):
            if kind is BoxPart:
                yield from boxes([p.box for p in group if isinstance(p, BoxPart)])
                continue
            for part in group:
                if isinstance(part, TextPart):
                    yield TextSegment(text=part.text)
                elif isinstance(part, ImagePart):
                    yield MediumSegment(medium=media, pad=self.image)
                    media += 1
                elif isinstance(part, AskPart) and part.ref is None:
                    yield SpecialSegment(name=self.grounding)
                elif isinstance(part, AskPart):
                    yield SpecialSegment(name=self.ref[0])
                    yield TextSegment(text=part.ref or "")
                    yield SpecialSegment(name=self.ref[1])


def _stripped(content: list[Segment]) -> list[Segment]:
    """Without white space at both ends, as released."""
    while content and isinstance(first := content[0], TextSegment):
        if text := first.text.lstrip():
            content[0] = replace(first, text=text)
            break
        del content[0]
    while content and isinstance(last := content[-1], TextSegment):
        if text := last.text.rstrip():
            content[-1] = replace(last, text=text)
            break
        del content[-1]
    return content
