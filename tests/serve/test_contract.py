"""Requests made from the OpenAPI document, sensible and not: no answer of 5xx, none that the document does not know."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.test_server import looking

EXAMPLES = 40


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_document_is_kept(http, url, mode):
    schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    schema.config.update(base_url=url)
    tried = 0
    modes = {"positive": schemathesis.GenerationMode.POSITIVE, "negative": schemathesis.GenerationMode.NEGATIVE}
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if mode == "negative" and not operation.body:
            continue  # there is nothing to get wrong

        @given(case=operation.as_strategy(generation_mode=modes[mode]))
        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def keeps(case):
            nonlocal tried
            tried += 1
            if isinstance(case.body, dict) and "messages" in case.body:
                case.body.setdefault("max_tokens", 4)
            answer = case.call()
            assert answer.status_code < 500, answer.text
            case.validate_response(
                answer,
                checks=[status_code_conformance, content_type_conformance, response_schema_conformance],
            )

        keeps()
    assert tried > EXAMPLES


def test_answers_are_those_of_the_document(http):
    """The same for answers that random requests rarely reach."""
    import jsonschema_rs

    described = http.get("/openapi.json").json()
    bodies = {
        "/v1/chat/completions": {
            "messages": looking("Find all."), "structured_outputs": {"boxes": {"most": 2}}, "logprobs": True,
            "top_logprobs": 2, "n": 2, "temperature": 1.5, "seed": 1,
        },
        "/v1/completions": {"prompt": "The cat", "max_tokens": 4, "logprobs": 2, "n": 2},
        "/tokenize": {"messages": looking("What?")},
        "/detokenize": {"tokens": [1, 2, 3]},
    }  # fmt: skip
    for path, body in bodies.items():
        answer = http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        content = described["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        whole = {**content, "components": described["components"]}
        validator = jsonschema_rs.validator_for(json.loads(json.dumps(whole)))
        assert [e.message for e in validator.iter_errors(answer.json())] == []
