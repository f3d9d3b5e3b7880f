"""What a request needs of a model, and how long it waits for it."""

from covey.contracts.inference import AnswerFormat, ChatRequest, Image, Message, Prompt, Tool
from covey.roles.gateway.needs import needs
from covey.roles.gateway.patience import KNOWN_MAX, Patience, Patiences, Timeouts

DEFAULT = Patience(600.0, 60.0, 30.0)


def test_the_first_table_that_names_a_model_holds_and_leaves_the_rest_as_it_is() -> None:
    tables = (Timeouts(("slow-*", "other"), first_token_seconds=300.0), Timeouts(("slow-1",), 1.0, 2.0, 3.0))
    patiences = Patiences(DEFAULT, tables)
    assert patiences.of("slow-1") == Patience(600.0, 300.0, 30.0)
    assert patiences.of("other") == Patience(600.0, 300.0, 30.0)
    assert patiences.of("quick") == patiences.of("quick") == DEFAULT
    assert Patiences(DEFAULT, tables[1:]).of("slow-1") == Patience(1.0, 2.0, 3.0)


def test_only_so_many_names_are_remembered() -> None:
    patiences = Patiences(DEFAULT, (Timeouts(("m7",), total_seconds=1.0),))
    for number in range(2 * KNOWN_MAX + 1):
        patiences.of(f"m{number}")
    assert len(patiences._known) <= KNOWN_MAX
    assert patiences.of("m7").total_seconds == 1.0


def test_what_a_chat_needs_is_named_by_the_field_that_asks_for_it() -> None:
    talk = (Message("user", "x"),)
    assert needs(ChatRequest("m", talk), {}) == {"chat": "model"}
    assert needs(ChatRequest("m", (), prompt=Prompt("x")), {"completion": "raw"}) == {"completion": "raw"}
    seen = (Message("user", "x", images=(Image("image/png", b""),)),)
    all_of_it = ChatRequest("m", seen, tools=(Tool("f"),), format=AnswerFormat("json"), logprobs=0)
    assert needs(all_of_it, {"json": "format", "vision": ""}) == {
        "chat": "model", "tools": "tools", "vision": "messages", "json": "format", "logprobs": "logprobs",
    }  # fmt: skip
    # Tools that may not be called ask nothing of a model.
    assert needs(ChatRequest("m", talk, tools=(Tool("f"),), tool_use="none"), {}) == {"chat": "model"}
