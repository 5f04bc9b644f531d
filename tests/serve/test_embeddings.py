"""`/v1/embeddings` of real servers with CLIP and SigLIP checkpoints: the vectors of the library, by OpenAI's client."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

import foveal
from tests.helpers import clip, siglip
from tests.serve.conftest import running

ROOT = Path(__file__).parents[2]
TEXTS = ["a photo of a cat", "the red bicycle", "a photo of a cat"]
SCENE = "data:image/png;base64," + base64.b64encode((ROOT / "examples/scene.png").read_bytes()).decode()
WRITERS: dict[str, Any] = {"clip": clip, "siglip": siglip}


@pytest.fixture(scope="module", params=WRITERS)
def asked(request, tmp_path_factory):
    """A running server's address, a client of it, and the same checkpoint in this process."""
    helper = WRITERS[request.param]
    folder = helper.write(helper.oracle(seed=4), tmp_path_factory.mktemp(request.param))
    with (
        running(str(folder), "--threads", "1", "--decoders", "1", "--served-model-name", "eyes") as (_, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client,
        httpx2.Client(base_url=url, timeout=120) as http,
    ):
        yield client, http, foveal.load(folder, device="cpu")


# Measured: 6e-8 at most; the server computes in the same type, with another number of threads.
def close(found: Any, expected: Any) -> bool:
    return np.allclose(np.array(found, np.float32), expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_vectors_are_those_of_the_library(asked):
    client, http, model = asked
    own = model.embed_text(TEXTS)
    made = client.embeddings.create(model="eyes", input=TEXTS)  # the client asks for base64 by itself
    assert [one.index for one in made.data] == [0, 1, 2]
    assert close([one.embedding for one in made.data], own)
    assert made.usage.prompt_tokens == made.usage.total_tokens == len(model.process_text(TEXTS).tokens)
    plain = client.embeddings.create(model="eyes", input=TEXTS[1], encoding_format="float")
    assert close(plain.data[0].embedding, own[1])
    raw = http.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"}).json()["data"]
    size = own.shape[1]
    assert close([struct.unpack(f"<{size}f", base64.b64decode(one["embedding"])) for one in raw], own)
    assert client.embeddings.create(model="eyes", input="a", dimensions=size).data[0].embedding


@pytest.mark.slow
def test_pictures_and_texts_keep_their_order(asked):
    _, http, model = asked
    parts = [
        "a photo of a cat",
        {"type": "image_url", "image_url": {"url": SCENE}},
        {"type": "text", "text": "the red bicycle"},
        {"type": "image_url", "image_url": SCENE},
    ]
    found = http.post("/v1/embeddings", json={"input": parts, "encoding_format": "float"}).json()["data"]
    vectors = [one["embedding"] for one in found]
    picture = model.embed_images(SCENE)[0]
    assert close(vectors[0::2], model.embed_text([TEXTS[0], TEXTS[1]]))
    assert close(vectors[1], picture) and close(vectors[3], picture)
    assert [round(sum(v * v for v in vector), 4) for vector in vectors] == [1.0] * 4
    card = http.get("/v1/models").json()["data"][0]
    assert card["foveal"]["family"] in WRITERS and card["foveal"]["context_tokens"] is None


@pytest.mark.slow
def test_what_is_refused(asked):
    client, http, _ = asked
    size = len(client.embeddings.create(model="eyes", input="a").data[0].embedding)
    with pytest.raises(openai.BadRequestError, match=f"this model's vectors have {size}"):
        client.embeddings.create(model="eyes", input="a", dimensions=size - 1)
    for ids in ([1, 2, 3], [[1, 2], [3]]):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="eyes", input=ids)
        assert refused.value.param.startswith("input")
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(model="eyes", input="cat " * 5000)
    assert long.value.code == "context_length_exceeded"
    wrong: list[tuple[Any, str]] = [
        ([], "invalid_request"),
        ({"a": 1}, "invalid_request"),
        ([{"type": "image_url", "image_url": SCENE, "max_pixels": 5000}], "invalid_request"),
        ([{"type": "image_url", "image_url": "http://127.0.0.1/a.png"}], "invalid_media"),
        ([{"type": "image_url", "image_url": SCENE[:2000]}], "invalid_media"),
        ([{"type": "image_url", "image_url": SCENE}] * 17, "media_too_large"),
    ]
    for value, code in wrong:
        answer = http.post("/v1/embeddings", json={"input": value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), json.dumps(value)[:80]
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/tokenize", {"prompt": "Hi"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == 400 and "/v1/embeddings" in answer.json()["error"]["message"]
    assert http.get("/ready").status_code == 200
