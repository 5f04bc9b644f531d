"""The API described: an OpenAPI document, and a page that shows it without any script."""

import html
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from foveal import __version__
from foveal.serve import replies, schema

if TYPE_CHECKING:
    from foveal.serve.service import Service

_ERRORS = {
    400: "the request is wrong, or a medium in it",
    401: "no valid key",
    403: "a host name that this server does not answer to",
    404: "another model than the one served",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "too many requests wait; see Retry-After",
    500: "the server failed",
    503: "the engine restarts, or the server stops; see Retry-After",
    504: "the request took too long",
}
_POSTS: dict[str, tuple[str, type[BaseModel], type[BaseModel], bool]] = {
    "/v1/chat/completions": ("Answer a conversation", schema.ChatRequest, replies.ChatReply, True),
    "/v1/completions": ("Continue a text", schema.CompletionRequest, replies.CompletionReply, True),
    "/v1/embeddings": ("Vectors of texts and pictures", schema.EmbeddingRequest, replies.EmbeddingReply, False),
    "/tokenize": ("Tokens of a text or conversation", schema.TokenizeRequest, replies.TokenizeReply, False),
    "/detokenize": ("Text of tokens", schema.DetokenizeRequest, replies.DetokenizeReply, False),
}
_GETS: dict[str, tuple[str, type[BaseModel], tuple[int, ...]]] = {
    "/v1/models": ("The model", replies.ModelList, ()),
    "/v1/models/{name}": ("The model by its name", replies.ModelCard, (404,)),
    "/health": ("Whether the server is alive", replies.Alive, ()),
    "/ready": ("Whether it takes requests", replies.Ready, ()),
}
_REF = "#/components/schemas/{model}"


def document(service: "Service") -> dict[str, Any]:
    """The OpenAPI document of a server."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    closed = bool(service.keys)
    for path, (summary, asked, answered, streams) in _POSTS.items():
        content = {"application/json": {"schema": _schema(answered, schemas, "serialization")}}
        if streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        paths[path] = {
            "post": {
                "summary": summary,
                "operationId": path.strip("/").replace("/", "_"),
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _schema(asked, schemas, "validation")}},
                },
                "responses": {"200": {"description": "done", "content": content}, **_errors(_ERRORS, schemas)},
            }
        }
    for path, (summary, answered, codes) in _GETS.items():
        good = {"description": "done", "content": _json(_schema(answered, schemas, "serialization"))}
        own = {"503": {**good, "description": "not ready"}} if path == "/ready" else {}
        paths[path] = {
            "get": {
                "summary": summary,
                "responses": {
                    "200": good,
                    **own,
                    **_errors({c: _ERRORS[c] for c in (*codes, 401 if closed else 403)}, schemas),
                },
            }
        }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    plain = {"200": {"description": "done", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    refused = _errors({401: _ERRORS[401]} if closed else {403: _ERRORS[403]}, schemas)
    paths["/metrics"] = {"get": {"summary": "Figures for Prometheus", "responses": {**plain, **refused}}}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Foveal", "version": __version__, "description": f"Serves {service.name}."},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if closed:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return made


def _schema(model: type[BaseModel], schemas: dict[str, Any], mode: Any) -> dict[str, Any]:
    found = model.model_json_schema(ref_template=_REF, mode=mode)
    schemas.update(found.pop("$defs", {}))
    schemas[model.__name__] = found
    return {"$ref": _REF.format(model=model.__name__)}


def _json(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": content}}


def _errors(codes: Mapping[int, str], schemas: dict[str, Any]) -> dict[str, Any]:
    reply = _json(_schema(replies.ErrorReply, schemas, "serialization"))
    return {str(code): {"description": text, "content": reply} for code, text in codes.items()}


def page(described: Mapping[str, Any]) -> str:
    """The document for people: plain HTML."""

    def shown(value: Any) -> str:
        return f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"

    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Foveal API</title>',
        f"<h1>Foveal {html.escape(str(described['info']['version']))}</h1>",
        f"<p>{html.escape(described['info']['description'])} The same for programs: ",
        '<a href="/openapi.json">/openapi.json</a>.</p>',
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(operation['summary'])}.</p>")
            asked = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            lines = [f"<li>{code}: {html.escape(r['description'])}</li>" for code, r in operation["responses"].items()]
            link = asked["$ref"].rpartition("/")[2] if asked else ""
            wanted = f'<p>Body: <a href="#{link}">{link}</a></p>' if link else ""
            parts.append(f"{wanted}<ul>{''.join(lines)}</ul>")
    parts.append("<h1>Schemas</h1>")
    for name, value in described["components"]["schemas"].items():
        parts.append(f'<h3 id="{html.escape(name)}">{html.escape(name)}</h3>{shown(value)}')
    return "".join(parts)
