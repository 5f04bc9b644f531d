"""A real server with the small model, asked by the clients that people have."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest

from tests.serve.conftest import running

ROOT = Path(__file__).parents[2]
SCENE = "data:image/png;base64," + base64.b64encode((ROOT / "examples/scene.png").read_bytes()).decode()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0, timeout=120) as found:
        yield found


def looking(text: str) -> list:
    content = [{"type": "image_url", "image_url": {"url": SCENE}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def test_text_and_streams_are_the_same(client):
    asked = {"model": "foveal-nano", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_answer_is_that_of_the_library(client):
    import foveal

    question = "Describe the image."
    said = client.chat.completions.create(model="foveal-nano", messages=looking(question), temperature=0)
    model = foveal.load()
    own = model.chat(
        [{"role": "user", "content": [{"type": "image", "image": str(ROOT / "examples/scene.png")}, question]}],
        temperature=0,
    )
    message = said.choices[0].message
    assert message.content == own.text
    assert [b["box_px"] for b in message.model_extra.get("boxes", [])] == [b["box_px"] for b in own.to_json()["boxes"]]
    (medium,) = said.model_extra["foveal"]["media"]
    assert medium["original_size"] == list(own.media[0].view.original)
    assert medium["processed_size"] == list(own.media[0].view.processed)
    assert said.usage.model_extra["visual_tokens"] == own.usage.visual_tokens


def test_boxes_come_in_pixels_of_the_picture(client):
    asked = {"structured_outputs": {"boxes": {"labels": ["sun", "moon"], "most": 2}}, "seed": 3}
    said = client.chat.completions.create(
        model="foveal-nano", messages=looking("Find all."), temperature=1.5, extra_body=asked
    )
    boxes = said.choices[0].message.model_extra["boxes"]
    assert 1 <= len(boxes) <= 2
    for box in boxes:
        assert box["label"] in ("sun", "moon")
        assert box["processed_size"] == said.model_extra["foveal"]["media"][0]["processed_size"]
        assert 0 <= min(box["box_px"]) <= max(box["box_px"]) <= 588
    kept = client.chat.completions.create(
        model="foveal-nano", messages=looking("Find all."), temperature=1.5,
        extra_body={**asked, "skip_special_tokens": False},
    )  # fmt: skip
    assert kept.choices[0].message.content.startswith("<|object_ref_start|>")
    assert kept.choices[0].message.model_extra["boxes"] == boxes


def test_knobs_of_a_picture_hold_and_are_told(client):
    part = {"type": "image_url", "image_url": {"url": SCENE}, "max_pixels": 60_000, "min_pixels": 30_000}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    said = client.chat.completions.create(model="foveal-nano", messages=messages, max_tokens=1)
    (medium,) = said.model_extra["foveal"]["media"]
    assert medium["max_pixels"] == 60_000
    assert medium["min_pixels"] == 30_000
    width, height = medium["processed_size"]
    assert 30_000 <= width * height <= 60_000
    low = {"type": "image_url", "image_url": {"url": SCENE, "detail": "low"}}
    said = client.chat.completions.create(
        model="foveal-nano", messages=[{"role": "user", "content": [low]}], max_tokens=1
    )
    assert said.model_extra["foveal"]["media"][0]["max_pixels"] <= 512 * 512


def test_several_answers_scores_and_seeds(client):
    asked = {
        "model": "foveal-nano", "messages": [{"role": "user", "content": "Count."}], "temperature": 2, "max_tokens": 8,
        "seed": 7, "n": 3, "logprobs": True, "top_logprobs": 2, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    first, second = client.chat.completions.create(**asked), client.chat.completions.create(**asked)
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in second.choices]
    assert len(set(texts)) > 1
    for choice in first.choices:
        assert len(choice.logprobs.content) == 8
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content)
    assert first.usage.completion_tokens == 24


def test_stop_strings_end_an_answer(client):
    asked = {"model": "foveal-nano", "messages": looking("Describe the image."), "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[10:14]
    cut = client.chat.completions.create(**asked, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(**asked, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole[: whole.find(stop)]


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def test_answers_follow_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    for seed in range(5):
        said = client.chat.completions.create(
            model="foveal-nano", messages=looking("What?"), temperature=1.5, seed=seed, response_format=form
        )
        value = json.loads(said.choices[0].message.content)
        assert value["colour"] in ("red", "blue")
        assert 0 <= value["count"] <= 99
    said = client.chat.completions.create(
        model="foveal-nano", messages=looking("What?"), temperature=1.5, seed=1,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )  # fmt: skip
    assert said.choices[0].message.content in ("yes", "no")


TOOL = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA}}


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client, stream):
    messages = [{"role": "user", "content": "Paint it."}]
    asked = {
        "model": "foveal-nano", "messages": messages, "tools": [TOOL], "temperature": 1.5, "seed": 5,
        "tool_choice": {"type": "function", "function": {"name": "paint"}},
    }  # fmt: skip
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        (call,) = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert not any(c.choices[0].delta.content for c in chunks)
        assert call.index == 0
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
    assert call.function.name == "paint"
    assert json.loads(call.function.arguments)["colour"] in ("red", "blue")
    made = {"id": call.id, "type": "function", "function": {"name": "paint", "arguments": call.function.arguments}}
    more = [
        *messages,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": call.id, "content": "done <|im_end|>"},
    ]
    again = client.chat.completions.create(model="foveal-nano", messages=more, tools=[TOOL], max_tokens=4)
    assert again.choices[0].finish_reason in ("stop", "length")


def test_an_answer_can_be_sent_back(client):
    said = client.chat.completions.create(model="foveal-nano", messages=looking("Describe the image."), temperature=0)
    back = said.choices[0].message.model_dump()
    more = [*looking("Describe the image."), back, {"role": "user", "content": "And?"}]
    again = client.chat.completions.create(model="foveal-nano", messages=more, max_tokens=2)
    assert again.choices[0].finish_reason in ("stop", "length")


def test_errors_reach_the_client_as_its_own(client):
    talk = [{"role": "user", "content": "Hi"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=talk)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="foveal-nano", messages=talk, extra_body={"max_pixel": 5})
    assert unknown.value.param == "max_pixel"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="foveal-nano", messages=talk, max_tokens=10**6)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as broken:
        client.chat.completions.create(
            model="foveal-nano",
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SCENE[:2000]}}]}],
            stream=True,
        )
    assert broken.value.code == "invalid_media"
    with pytest.raises(openai.BadRequestError) as remote:
        client.chat.completions.create(
            model="foveal-nano",
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}],
        )
    assert "remote media are off" in remote.value.message
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="foveal-nano", input="hello")


def test_completions_continue_texts(client):
    said = client.completions.create(model="foveal-nano", prompt=["The cat", "The dog"], n=2, max_tokens=4, logprobs=1)
    assert [c.index for c in said.choices] == [0, 1, 2, 3]
    assert all(len(c.logprobs.tokens) == 4 or c.finish_reason == "stop" for c in said.choices)
    chunks = client.completions.create(
        model="foveal-nano",
        prompt="The cat",
        max_tokens=4,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts = "".join(c.choices[0].text for c in chunks if c.choices)
    assert (
        texts
        == client.completions.create(model="foveal-nano", prompt="The cat", max_tokens=4, temperature=0).choices[0].text
    )


def test_tokens_are_counted_with_media(http, client):
    asked = {"messages": looking("Describe the image.")}
    counted = http.post("/tokenize", json=asked).json()
    said = client.chat.completions.create(model="foveal-nano", messages=asked["messages"], max_tokens=1)
    assert counted["count"] == said.usage.prompt_tokens == len(counted["tokens"])
    assert counted["media"][0]["tokens"] == said.usage.model_extra["visual_tokens"]
    text = http.post("/detokenize", json={"tokens": counted["tokens"]}).json()["prompt"]
    assert "Describe the image." in text
    assert http.post("/tokenize", json={"prompt": "Hello", "return_token_strs": True}).json()["token_strs"]


def test_the_model_and_its_limits_are_told(client, http):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).model_extra["foveal"]["family"] == "qwen2_vl"
    facts = model.model_extra["foveal"]
    assert facts["min_pixels"] < facts["max_pixels"] <= 1280 * 28 * 28
    assert facts["context_tokens"] == model.model_extra["max_model_len"]
    assert http.get("/ready").json() == {"ready": True, "engine": "ready"}
    assert "foveal_event_loop_lag_seconds_bucket" in http.get("/metrics").text
    page = http.get("/docs").text
    assert "/v1/chat/completions" in page
    assert "<script" not in page
    assert "src=" not in page


@pytest.mark.slow
def test_the_llm_command_line_works(url, tmp_path):
    models = [
        {
            "model_id": "nano",
            "model_name": "foveal-nano",
            "api_base": f"{url}/v1",
            "api_key_name": "none",
            "vision": True,
            "supports_schema": True,
            "supports_tools": True,
        }
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "keys.json").write_text(json.dumps({"none": "none"}))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def llm(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), "-m", "nano", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    picture = str(ROOT / "examples/scene.png")
    assert llm("Describe the image.", "-a", picture, "-o", "temperature", "0")
    value = json.loads(llm("What?", "--schema", json.dumps(SCHEMA), "--no-stream"))
    assert value["colour"] in ("red", "blue")


@pytest.mark.slow
def test_an_engine_that_is_killed_is_replaced(served, http, client):
    server, _ = served
    asked = {"model": "foveal-nano", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    before = client.chat.completions.create(**asked).choices[0].message.content
    long = {**asked, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(**long, stream=True)
    next(iter(stream))
    os.kill(server.children()["foveal.serve.engine_child"], 9)
    with pytest.raises(openai.APIError, match="restarting"):
        list(stream)
    deadline = time.monotonic() + 120
    while not http.get("/ready").is_success:
        refused = http.post("/v1/chat/completions", json={"messages": asked["messages"]})
        assert refused.status_code in (200, 503)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.chat.completions.create(**asked).choices[0].message.content == before


@pytest.mark.slow
def test_rounded_weights_and_no_caches():
    """`--quantize` answers as the library with the same rounding; caches that are off keep nothing."""
    import foveal

    flags = ("--quantize", "int8", "--vision-cache-bytes", "0", "--no-enable-prefix-caching", "--threads", "1")
    with running(*flags, "--decoders", "1") as (_, url), httpx2.Client(base_url=url, timeout=120) as http:
        asked = {"messages": looking("Describe the image."), "temperature": 0}
        said = [http.post("/v1/chat/completions", json=asked).json() for _ in range(2)]
        lines = http.get("/metrics").text.splitlines()
    model = foveal.load(quantize="int8")
    picture = {"type": "image", "image": str(ROOT / "examples/scene.png")}
    own = model.chat([{"role": "user", "content": [picture, "Describe the image."]}], temperature=0)
    assert [s["choices"][0]["message"]["content"] for s in said] == [own.text] * 2
    assert [s["usage"]["prompt_tokens_details"]["cached_tokens"] for s in said] == [0, 0]
    assert "foveal_engine_vision_misses 2.0" in lines and "foveal_engine_vision_bytes 0.0" in lines
    assert "foveal_engine_blocks_cached 0.0" in lines


@pytest.mark.slow
def test_an_engine_that_cannot_be_made_says_why():
    for flags, word in ((("--quantize", "int3"), "int3"), (("--vision-cache-bytes", "-1"), "vision_cache_bytes is -1")):
        command = [sys.executable, "-m", "foveal.cli.main", "serve", "--port", "0", *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 2, done.stderr
        assert word in done.stderr and "Traceback" not in done.stderr


def test_no_connection_holds_back_the_end_of_an_answer():
    """Nagle's algorithm would let it wait for the client's confirmation of the beginning, 40 ms in practice."""
    from foveal.serve.server import _listener

    with _listener("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
