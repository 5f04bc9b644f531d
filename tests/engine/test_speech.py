"""An answer's words as they come: tags of content are words, tags of control are not."""

from foveal.core.packed import Packed
from foveal.engine.request import Event, Sampling
from foveal.engine.speech import Speech
from foveal.processing.processor import Processor
from tests.helpers.processing import processor
from tests.helpers.tiny_tokenizer import with_tags

TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def said(own: Processor, words: list[str], **options) -> tuple[Speech, str]:
    """What is shown of an answer of these words; names of added tokens become these."""
    tokenizer = own.tokenizer
    packed: Packed = own.process("Hello")
    speech = Speech(own, Sampling(**options), packed, frozenset({own.end_of_turn}))
    shown = ""
    for word in words:
        ids = [tokenizer.special(word)] if word in tokenizer.special_names else tokenizer.encode_text(word)
        for token in ids:
            if speech.finish_reason is None:
                last = token == own.end_of_turn
                speech.hear(Event(id="a", index=0, token=token, finish_reason="stop" if last else None))
                shown += speech.visible()
    return speech, shown


def test_tags_of_content_are_shown_and_others_are_not(tmp_path):
    own = processor(with_tags(tmp_path / "vocabulary", TAGS))
    words = ["<think>", "It is ", "a cat", "</think>", "\nA ", "<|object_ref_start|>", "cat", "<|object_ref_end|>", "."]
    speech, shown = said(own, [*words, "<|im_end|>"])
    assert shown == "<think>It is a cat</think>\nA cat."
    assert speech.raw == "".join(words)


def test_a_tag_of_content_can_end_an_answer(tmp_path):
    own = processor(with_tags(tmp_path / "vocabulary", TAGS))
    speech, shown = said(own, ["Well, ", "<tool_call>", "{}", "</tool_call>", "<|im_end|>"], stop=("l>{",))
    assert (shown, speech.finish_reason) == ("Well, <tool_cal", "stop")
