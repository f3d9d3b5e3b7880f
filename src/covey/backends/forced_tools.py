"""Tools for models whose chat template knows none: told in words, called in JSON, found in the answer again. Pure.

Where a call is required, a JSON Schema (the union of the calls that are allowed) forces the model to write one, as
`{"name": ..., "arguments": {...}}`. Where it may choose, it is told to answer in words or to write just that; an answer
that begins like a call of a known tool is one.
"""

import json
from typing import Any, Literal, cast

import msgspec

from covey.backends.completion_requests import SYSTEM_PROMPT, decoded_schema
from covey.contracts.inference import AnswerFormat, ChatDelta, ChatRequest, Message, Tool, ToolCallDelta
from covey.errors import CallError

HEAD_CHARACTERS_MAX = 512
"""An answer that has not turned out to be a call by then is none."""


def plain_request(request: ChatRequest) -> ChatRequest:
    """The same request for a model that knows no tools: they are in the text, and where a call is required, in the
    format. A stop sequence cannot end a required call: half of one is of no use.

    Raises:
        CallError: `invalid`: a forced tool that is not there, a schema that is no JSON object.
    """
    tools = _usable(request)
    messages = _rendered(request.messages)
    if tools:
        messages = _told(messages, _instructions(tools, required=request.tool_use == "required"))
    changed: dict[str, Any] = {"messages": messages, "tools": (), "tool_use": "auto", "forced_tool": ""}
    changed["parallel_tool_calls"] = None
    if tools and request.tool_use == "required":
        changed |= {"format": AnswerFormat("schema", json.dumps(_union(tools, None)), "call"), "stop": ()}
    elif tools and request.format.kind == "schema":
        answer = decoded_schema(request.format.schema, "response_format")
        changed["format"] = AnswerFormat("schema", json.dumps(_union(tools, answer)), "answer")
    return msgspec.structs.replace(request, **changed)


def _usable(request: ChatRequest) -> tuple[Tool, ...]:
    if request.tool_use == "none":
        return ()
    if not (request.tool_use == "required" and request.forced_tool):
        return request.tools
    forced = tuple(tool for tool in request.tools if tool.name == request.forced_tool)
    if not forced:
        raise CallError("invalid", f"There is no tool {request.forced_tool[:100]!r} among tools.", param="tool_choice")
    return forced


def _instructions(tools: tuple[Tool, ...], *, required: bool) -> str:
    lines = ["You can call these tools:"]
    for tool in tools:
        parameters = json.dumps(decoded_schema(tool.parameters, "tools"), ensure_ascii=False)
        described = f": {tool.description}" if tool.description else ""
        lines.append(f"- {tool.name}{described} Parameters as JSON Schema: {parameters}")
    how = '{"name": "TOOL", "arguments": {...}}'
    if required:
        lines.append(f"Answer with one call, as JSON and nothing else: {how}")
    else:
        lines.append(f"To call one, answer with JSON and nothing else: {how} Otherwise answer in words.")
    return "\n".join(lines)


def _told(messages: tuple[Message, ...], instructions: str) -> tuple[Message, ...]:
    if messages and messages[0].role == "system":
        first = msgspec.structs.replace(messages[0], content=f"{messages[0].content}\n\n{instructions}")
        return (first, *messages[1:])
    return (Message("system", f"{SYSTEM_PROMPT}\n\n{instructions}"), *messages)


def _rendered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Earlier calls as their JSON, tools' results as the user's words: many templates know no other speakers.

    Results that follow each other, and what the user says after them, are one message: many templates want the speakers
    to take turns.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    rendered: list[Message] = []
    after_result = False
    for message in messages:
        content = message.content
        if message.tool_calls:
            calls = (_written(call.name, call.arguments) for call in message.tool_calls)
            content = "\n".join(filter(None, (content, *calls)))
        if message.role == "tool":
            name = message.name or names.get(message.tool_call_id, "the tool")
            content = f"Result of {name}: {content}"
        role = "user" if message.role == "tool" else message.role
        if after_result and role == "user" and not message.images:
            last = rendered[-1]
            rendered[-1] = msgspec.structs.replace(last, content=f"{last.content}\n{content}")
        else:
            rendered.append(Message(role, content, "" if message.role == "tool" else message.name, message.images))
        after_result = message.role == "tool"
    return tuple(rendered)


def _written(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments or "{}"}}}'


def _union(tools: tuple[Tool, ...], answer: dict[str, Any] | None) -> dict[str, Any]:
    """One schema of all calls, and of the answer where there is one.

    Each tool's own schema moves to `$defs`, and what it refers to inside itself with it.
    """
    definitions: dict[str, Any] = {}
    shapes: list[dict[str, Any]] = []
    for place, tool in enumerate(tools):
        definitions[f"tool{place}"] = _moved(decoded_schema(tool.parameters, "tools"), f"#/$defs/tool{place}")
        shapes.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/tool{place}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    if answer is not None:
        definitions["answer"] = _moved(answer, "#/$defs/answer")
        shapes.append({"$ref": "#/$defs/answer"})
    return {"anyOf": shapes, "$defs": definitions} if len(shapes) > 1 else {**shapes[0], "$defs": definitions}


def _moved(schema: object, to: str) -> Any:
    if isinstance(schema, list):
        items = cast("list[object]", schema)
        return [_moved(item, to) for item in items]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {key: _moved(value, to) for key, value in cast("dict[str, object]", schema).items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = to + reference[1:]
    return moved


class CallFinder:
    """Finds the call in an answer that comes in pieces: deltas in, deltas out.

    Args:
        tools: the names that may be called.
        call_id: the id of the call.
        required: the answer must be one; else it may be words, or JSON of another kind.
    """

    def __init__(self, tools: frozenset[str], call_id: str, *, required: bool) -> None:
        self._tools = tools
        self._call_id = call_id
        self._required = required
        self._state: Literal["head", "arguments", "over", "words"] = "head"
        self._held = ""
        self._held_tokens = 0
        self._held_logprobs: tuple[Any, ...] = ()
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def over(self) -> bool:
        """The call is complete: whatever the model would say now is of no use."""
        return self._state == "over"

    def receive(self, delta: ChatDelta) -> ChatDelta | None:
        """What a delta with text is worth; `None` while it may yet turn out to be either."""
        if self._state == "words" or not delta.text:
            return delta
        if self._state == "over":
            return None
        if self._state == "arguments":
            return self._passed_on(delta, ToolCallDelta(0, arguments=self._argument(delta.text)))
        self._held += delta.text
        self._held_tokens += delta.tokens
        self._held_logprobs += delta.logprobs
        head = call_head(self._held, self._tools)
        if head is None and len(self._held) < HEAD_CHARACTERS_MAX:
            return None
        whole = msgspec.structs.replace(delta, tokens=self._held_tokens, logprobs=self._held_logprobs)
        if not head:
            if self._required:
                raise _not_called()
            self._state = "words"
            return msgspec.structs.replace(whole, text=self._held)
        self._state = "arguments"
        name, rest = head
        return self._passed_on(whole, ToolCallDelta(0, self._call_id, name, self._argument(rest)))

    def end(self, last: ChatDelta) -> tuple[ChatDelta, ...]:
        """The last deltas: what was still held back, and the end with its reason.

        Raises:
            CallError: `upstream`: a call was required, and neither it nor the limit of tokens came.
        """
        if self._state in {"arguments", "over"}:
            ended = self._state == "over"
            return (msgspec.structs.replace(last, finish="tool_calls" if ended else last.finish),)
        if self._required and last.finish == "stop":
            raise _not_called()
        if not self._held or self._state == "words" or self._required:
            return (last,)
        return (ChatDelta(self._held, tokens=self._held_tokens, logprobs=self._held_logprobs), last)

    def _passed_on(self, delta: ChatDelta, call: ToolCallDelta) -> ChatDelta:
        return msgspec.structs.replace(delta, text="", tool_calls=(call,))

    def _argument(self, text: str) -> str:
        """The part of a text that belongs to the arguments: up to the brace that closes them."""
        for place, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._state = "over"
                    return text[: place + 1]
        return text


def _not_called() -> CallError:
    return CallError("upstream", "The model did not call a tool though it was forced to; try again.")


def call_head(text: str, tools: frozenset[str]) -> tuple[str, str] | Literal[False] | None:
    """The tool's name and the start of its arguments in the start of an answer.

    `False`: it is no call of these tools, however it goes on; `None`: it may yet become one.
    """
    rest = text.lstrip()
    for expected in ("{", '"name"', ":"):
        if not rest.startswith(expected):
            return None if expected.startswith(rest) else False
        rest = rest[len(expected) :].lstrip()
    if not rest.startswith('"'):  # a name is a text, and nothing else is worth a decoder's trouble
        return False if rest else None
    try:
        name, end = json.JSONDecoder().raw_decode(rest)
    except json.JSONDecodeError:
        return None
    if name not in tools:
        return False
    rest = rest[end:].lstrip()
    for expected in (",", '"arguments"', ":"):
        if not rest.startswith(expected):
            return None if expected.startswith(rest) else False
        rest = rest[len(expected) :].lstrip()
    if not rest:
        return None
    return (cast("str", name), rest) if rest.startswith("{") else False
