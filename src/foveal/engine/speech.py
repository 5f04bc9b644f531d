"""An answer's words as they come: what can be shown already, and where a stop string ends it."""

from foveal.engine.request import Generation
from foveal.processing.processor import Processor


class Speech:
    """Follows one `Generation` token by token.

    `visible` gives the text that is certain to be part of the final one: tags and coordinates are left out,
    half characters, unfinished boxes and possible beginnings of a stop string are held back.
    """

    def __init__(self, processor: Processor, generation: Generation, packed_views: object = None) -> None:
        self.generation = generation
        self._processor = processor
        self._stream = processor.tokenizer.stream()
