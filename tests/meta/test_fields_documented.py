"""docs/api.md names every field that is read of a request, in the table of its path."""

import msgspec
import pytest
from documents import code, read, table

from covey.dialects.openai_chat import ChatBody
from covey.dialects.openai_completions import CompletionBody
from covey.dialects.openai_embeddings import EmbeddingBody
from covey.dialects.openai_responses import ResponseBody

PAGE = read("docs/api.md")
REFUSED = {
    ChatBody: {"audio", "web_search_options"},
    ResponseBody: {"previous_response_id", "conversation", "background", "prompt"},
}
"""Read only to be refused by name; the text says so."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ChatBody),
        ("/v1/completions", CompletionBody),
        ("/v1/embeddings", EmbeddingBody),
        ("/v1/responses", ResponseBody),
    ],
)
def test_every_field_that_is_read_is_documented(path: str, body: type[msgspec.Struct]) -> None:
    heading = f"`POST {path}`"
    names = {name.partition(".")[0] for row in table(PAGE, heading) for cell in row for name in code(cell)}
    refused = REFUSED.get(body, set())
    assert set(body.__struct_fields__) - refused <= names
    section = PAGE.partition(f"# {heading}\n")[2].partition("\n## ")[0]
    assert refused <= set(code(section))
