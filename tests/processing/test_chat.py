import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.box import Box, ImageView, Space
from foveal.processing.chat import ChatML
from foveal.processing.grounding import TaggedBoxes
from foveal.processing.messages import ImagePart, parse_conversation
from foveal.processing.segments import MediumSegment, SpecialSegment, TextSegment, as_text
from foveal.processing.tokens import Tokenizer
from tests.helpers import published
from tests.helpers.tiny_tokenizer import FOLDER

TINY = Tokenizer.from_file(FOLDER / "tokenizer.json")
WORDS = st.text(st.sampled_from("ab \n\r\tst12é你.,!?'"), max_size=20)
PART = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, WORDS),
    st.just({"type": "image", "image": "a.png"}),
    st.just({"type": "video", "video": "a.mp4"}),
)
CONVERSATION = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        WORDS | st.lists(PART, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


def no_boxes(boxes):
    raise AssertionError(f"no boxes were expected, got {boxes}")


def render(messages, *, generate=True, chat=None, boxes=no_boxes):
    return (chat or ChatML()).render(parse_conversation(messages), boxes=boxes, generate=generate)


@given(CONVERSATION, st.booleans(), st.booleans())
@settings(max_examples=300)
def test_the_rendering_and_its_ids_are_those_of_the_published_template(messages, generate, number):
    segments = render(messages, generate=generate, chat=ChatML(number_media=number))
    expected = published.string(messages, generate=generate, add_vision_id=number)
    assert as_text(segments) == expected
    counts = [1 + i % 3 for i in range(sum(isinstance(s, MediumSegment) for s in segments))]
    assert TINY.encode_segments(segments, counts).ids == published.ids(published.expanded(expected, counts))


def test_media_are_numbered_in_order_of_appearance():
    image, video = {"type": "image", "image": "a"}, {"type": "video", "video": "b"}
    segments = render([{"role": "user", "content": [video, image]}, {"role": "user", "content": [image]}])
    slots = [(s.medium, s.pad) for s in segments if isinstance(s, MediumSegment)]
    assert slots == [(0, "<|video_pad|>"), (1, "<|image_pad|>"), (2, "<|image_pad|>")]


def test_what_the_assistant_says_and_the_end_of_its_turn_is_learned():
    segments = render(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"text": "A "}, {"image": "x"}, {"text": "cat."}]},
            {"role": "user", "content": "Thanks"},
        ]
    )
    learned = [s for s in segments if s.learned]
    assert as_text(learned) == "A cat.<|im_end|>"
    assert {(s.role, s.turn) for s in learned} == {("assistant", 1)}
    assert [s.turn for s in segments if s.role == "system"] == [-1] * 5
    assert (segments[-1].role, segments[-1].turn, segments[-1].learned) == ("assistant", 3, False)


def test_a_special_token_in_any_text_stays_text():
    for name in TINY.special_names:
        messages = [{"role": role, "content": f"a{name}b{name}"} for role in ("system", "user", "assistant", "tool")]
        messages.append({"role": "user", "content": [{"type": "text", "text": name}, {"image": name}, {"video": name}]})
        clean = [{**m, "content": "x"} for m in messages[:-1]] + [
            {"role": "user", "content": ["x", *messages[-1]["content"][1:]]}
        ]
        specials = [s for s in TINY.encode_segments(render(messages), [1, 1]).ids if s in TINY.special_ids]
        expected = [s for s in TINY.encode_segments(render(clean), [1, 1]).ids if s in TINY.special_ids]
        assert specials == expected


def test_neighbouring_boxes_go_to_the_box_style_together():
    view = ImageView(original=(100, 200), processed=(56, 112))
    boxes = [Box(label="cat", corners=(10, 20, 30, 40), space=Space.ORIGINAL_PX)] * 2
    content = [{"image": "a.png"}, "Here: ", boxes[0], {"type": "box", "box": boxes[1]}, "."]
    segments = render(
        [{"role": "assistant", "content": content}], boxes=lambda b: TaggedBoxes().render(b, [view]), generate=False
    )
    box = "<|box_start|>(100,100),(300,200)<|box_end|>"
    assert f"Here: <|object_ref_start|>cat<|object_ref_end|>{box}{box}.<|im_end|>" in as_text(segments)
    assert all(s.learned for s in segments if isinstance(s, SpecialSegment) and "box" in s.name)


@pytest.mark.parametrize(
    "chat",
    [ChatML(), ChatML(number_media=True), ChatML(default_system=None), ChatML(default_system='say "é" \\ {{ x }}\n')],
)
@given(messages=CONVERSATION, generate=st.booleans())
@settings(max_examples=40)
def test_the_written_template_gives_other_libraries_the_same_rendering(chat, messages, generate):
    theirs = published.tokenizer().apply_chat_template(
        messages, chat_template=chat.template(), add_generation_prompt=generate, tokenize=False
    )
    assert as_text(render(messages, generate=generate, chat=chat)) == theirs


def test_a_conversation_may_begin_without_a_system_turn():
    (message,) = parse_conversation([{"role": "user", "content": [{"image": "a"}]}])
    segments = ChatML(default_system=None).render([message], boxes=no_boxes, generate=False)
    assert isinstance(message.parts[0], ImagePart)
    assert as_text(segments) == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    assert segments[-1] == TextSegment(text="\n", role="user", turn=0)
