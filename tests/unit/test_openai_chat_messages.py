"""Messages of a chat completion: tools' calls and answers, and pictures, with every error at its field."""

import base64
import json
from typing import Any

import pytest

from covey.contracts.inference import IMAGES_MAX, TOOLS_MAX, Image, Message, ToolCall
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_chat
from covey.dialects.pictures import IMAGE_BYTES_MAX, media_type_of, picture_of_base64
from covey.errors import CallError
from openai_answers import PNG, only_chat, refused

DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def parse(*messages: dict[str, Any], **fields: Any) -> ChatCall:
    return parse_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def refusal(*messages: dict[str, Any]) -> CallError:
    return refused(parse_chat, {"model": "m", "messages": messages})


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": parts}


def picture(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def test_calls_and_what_tools_gave() -> None:
    messages = only_chat(
        parse(
            {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}], "refusal": None},
            {"role": "tool", "tool_call_id": "call_1", "content": "4"},
            {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "5"}]},
        )
    ).messages
    assert messages == (
        Message(
            "assistant",
            "",
            tool_calls=(ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "add", '{"a": 1}')),
        ),
        Message("tool", "4", tool_call_id="call_1"),
        Message("tool", "5", tool_call_id="call_2"),
    )


def test_calls_of_before_there_were_tools_get_an_id_that_their_answer_has_too() -> None:
    messages = only_chat(
        parse(
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}},
            {"role": "function", "name": "add", "content": "2"},
        )
    ).messages
    assert messages[1].tool_calls == (ToolCall("call_1", "add", "{}"),)
    assert messages[2] == Message("tool", "2", "add", tool_call_id="call_1")


def test_a_refusal_is_what_an_assistant_said() -> None:
    messages = only_chat(
        parse(
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}, {"type": "text", "text": "!"}]},
            {"role": "assistant", "refusal": "Never."},
        )
    ).messages
    assert [message.content for message in messages] == ["No!", "Never."]


def test_pictures_stand_where_they_stood() -> None:
    call = parse(
        {"role": "user", "content": "hi"},
        user({"type": "text", "text": "äb"}, picture(DATA_URL, detail="high"), {"type": "text", "text": "c"}),
    )
    message = only_chat(call).messages[1]
    assert message.content == "äbc"
    assert message.images == (Image("image/png", PNG, 2),)
    assert call.fields["vision"] == "messages[1].content[1].image_url"


@pytest.mark.parametrize(
    ("start", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"GIF87a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_what_a_picture_is_its_bytes_say(start: bytes, media_type: str | None) -> None:
    assert media_type_of(start) == media_type


def test_a_picture_may_be_called_what_it_is_not() -> None:
    jpeg = base64.b64encode(b"\xff\xd8\xff\xe0").decode()
    (image,) = only_chat(parse(user(picture(f"DATA:image/png;charset=x;base64,{jpeg}")))).messages[0].images
    assert image.media_type == "image/jpeg"


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://169.254.169.254/", "file:///etc/passwd", "", "x"])
def test_nothing_is_fetched_for_a_client(url: str) -> None:
    error = refusal(user(picture(url)))
    assert (error.code, error.param) == ("unsupported", "messages[0].content[0].image_url")
    assert "data:image/png;base64," in error.message


@pytest.mark.parametrize(
    "url",
    ["data:", "data:image/png,abc", "data:image/png;base64,", "data:image/png;base64,@@@", "data:image/png;base64,YQ",
     "data:image/png;base64,YWJj", "data:image/png;base64,ä", "data:" + "x" * 1000 + ";base64,YWJj"],
)  # fmt: skip
def test_what_is_no_picture_is_said_so(url: str) -> None:
    error = refusal(user({"type": "text", "text": "see"}, picture(url)))
    assert (error.code, error.param) == ("invalid", "messages[0].content[1].image_url")
    assert len(error.message) < 300


def test_pictures_have_limits() -> None:
    error = refusal(*[user(picture(DATA_URL))] * (IMAGES_MAX + 1))
    assert (error.code, error.param) == ("invalid", f"messages[{IMAGES_MAX}].content[0].image_url")
    with pytest.raises(CallError) as caught:
        picture_of_base64("A" * (IMAGE_BYTES_MAX * 4 // 3 + 5), "images[0]")
    assert (caught.value.code, caught.value.param) == ("too_large", "images[0]")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": ""}, "tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": "x" * 201}, "tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "tool_call_id"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{}]}, "tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}, "tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"arguments": ""}}]}, "tool_calls[0].function.name"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a b", "arguments": ""}}]},
         "tool_calls[0].function.name"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": {}}}]},
         "tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [CALL] * (TOOLS_MAX + 1)}, "tool_calls"),
        ({"role": "assistant", "function_call": {"name": "", "arguments": ""}}, "function_call.name"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "content[0].refusal"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}, "content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content[0].image_url.url"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(message: dict[str, Any], param: str) -> None:
    error = refusal({"role": "user", "content": "x"}, message)
    assert (error.code, error.param) == ("invalid", f"messages[1].{param}")
    assert error.message.startswith(f"messages[1].{param.partition('[')[0]}")


def test_calls_of_another_kind_are_refused() -> None:
    error = refusal({"role": "assistant", "tool_calls": [{"id": "x", "type": "custom"}]})
    assert (error.code, error.param) == ("unsupported", "messages[0].tool_calls[0].type")
