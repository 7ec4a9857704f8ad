"""/openapi.json and the page that shows it."""

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from test.server.conftest import Api


async def document(api: "Api") -> Any:
    reply = await api.call("GET", "/openapi.json")
    assert reply.status == 200
    return await reply.json()


async def test_the_description_is_public_even_on_a_closed_server(closed_api: "Api") -> None:
    described = await document(closed_api)
    assert described["openapi"] == "3.1.0"
    assert described["paths"]["/chat"]["post"]["security"] == [{"bearer": []}]
    assert (await closed_api.call("GET", "/docs")).status == 200


async def test_every_reference_leads_somewhere(api: "Api") -> None:
    described = await document(api)

    def references(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(described))
    assert found
    for reference in found:
        place = described
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    schemas = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert schemas <= found, "a schema that nothing refers to"


async def test_every_operation_is_named_once_and_has_a_summary(api: "Api") -> None:
    operations = [
        operation for methods in (await document(api))["paths"].values() for operation in methods.values()
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["summary"] for operation in operations)


async def test_secrets_are_marked(api: "Api") -> None:
    schemas = (await document(api))["components"]["schemas"]
    for schema, field in (("Login", "password"), ("PasswordChange", "new_password")):
        described = schemas[schema]["properties"][field]
        assert (described["format"], described["writeOnly"]) == ("password", True)


async def test_a_query_cannot_be_null(api: "Api") -> None:
    parameters = (await document(api))["paths"]["/conversations"]["get"]["parameters"]
    by_name = {parameter["name"]: parameter for parameter in parameters}
    assert by_name["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
    assert by_name["q"]["schema"] == {"type": "string", "maxLength": 200}
    assert "words" in by_name["q"]["description"]


async def test_the_page_touches_no_other_place(api: "Api") -> None:
    reply = await api.call("GET", "/docs")
    text = await reply.text()
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(links) == 4
    assert "<style" not in text
    assert not re.search(r"<script(?! src)", text)
    for link in links:
        assert link.startswith("/docs/")
        asset = await api.call("GET", link)
        assert asset.status == 200, link
        assert "max-age" in asset.headers["Cache-Control"]
        assert asset.headers["X-Content-Type-Options"] == "nosniff"
        again = await api.call("GET", link, headers={"If-None-Match": asset.headers.get("ETag", "")})
        assert again.status == (304 if "ETag" in asset.headers else 200)
    start = await (await api.call("GET", "/docs/start.js")).text()
    assert "validatorUrl: null" in start
    assert "http" not in start


@pytest.mark.parametrize(
    "path", ["/docs/", "/docs/swagger-ui.js", "/docs/index.css", "/docs/../server/app.py"]
)
async def test_only_what_the_page_needs_is_there(api: "Api", path: str) -> None:
    assert (await api.call("GET", path)).status == 404
