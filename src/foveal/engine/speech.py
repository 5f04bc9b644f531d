"""An answer's words as they come: what can be shown already, and where a stop string ends it."""

from foveal.core.errors import FovealError
from foveal.core.packed import Packed
from foveal.engine.request import Event, FinishReason, Sampling
from foveal.processing.grounding import Grounded
from foveal.processing.processor import Processor
from foveal.processing.segments import SpecialSegment, TextSegment


class Speech:
    """Follows the events of one answer, from ids to words and boxes.

    `visible` gives only text that is certain to be part of the final one: tags and coordinates are left out, half
    characters, unfinished boxes and what may be the beginning of a stop string are held back. All pieces together
    are the final text.

    Attributes:
        sampling: the options of the answer, whose stop strings end it.
        ids: its tokens so far.
        finish_reason: why it ended; None while it goes on. Where a stop string ended it the engine does not know yet:
            whoever drives both has to abort the request.
    """

    def __init__(self, processor: Processor, sampling: Sampling, packed: Packed, stops: frozenset[int]) -> None:
        self.sampling = sampling
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer, self._stops = processor.tokenizer, stops
        boxes = {self._tokenizer.special(name) for name in processor.processing.boxes.specials}
        self._control = self._tokenizer.special_ids - (self._tokenizer.content_ids - boxes)
        self._reader = processor.reader(packed)
        self._characters = processor.tokenizer.stream()
        self._raw: list[str] = []
        self._held = ""  # plain text that may yet become a stop string
        self._shown = 0
        self._grounded: Grounded | None = None

    @property
    def raw(self) -> str:
        """The model's own words so far, with every tag."""
        return "".join(self._raw)

    def hear(self, event: Event) -> None:
        """Takes the next token; a complete stop string ends the answer. Raises `FovealError` when an error ended it."""
        if event.finish_reason == "error":
            raise FovealError(event.error)
        token, self.finish_reason = event.token, event.finish_reason
        self.ids.append(token)
        if token in self._stops and not self.sampling.ignore_eos:
            self._text(self._characters.finish())
        elif token in self._control:
            self._text(self._characters.finish())
            self._flush()
            name = self._tokenizer.token_bytes(token).decode()
            self._raw.append(name)
            self._reader.take(SpecialSegment(name=name))
        else:
            self._text(self._characters.push([token]))
        if self.finish_reason is not None:
            self._finish()

    def visible(self) -> str:
        """New text since the last call."""
        text = self._grounded.text if self._grounded else "".join(self._reader.text)
        piece, self._shown = text[self._shown :], len(text)
        return piece

    @property
    def grounded(self) -> Grounded | None:
        """Words and boxes of the whole answer; None while it goes on."""
        return self._grounded

    def _text(self, text: str) -> None:
        stops = self.sampling.stop
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in stops) if at >= 0]
        if found:
            self._say(self._held[: min(found)])
            self._held = ""
            self.finish_reason = "stop"
            return
        keep = max((_overlap(self._held, stop) for stop in stops), default=0)
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def _flush(self) -> None:
        """A special token came: what was held back cannot become a stop string any more."""
        self._say(self._held)
        self._held = ""

    def _say(self, text: str) -> None:
        if text:
            self._raw.append(text)
            self._reader.take(TextSegment(text=text))

    def _finish(self) -> None:
        if self._grounded is None:
            self._text(self._characters.finish())
            self._flush()
            self._grounded = self._reader.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
