"""Texts and sequences of tokens, as completions and embeddings take them; and `stream_options`. Pure."""

from typing import TypeAlias, cast

import msgspec

from covey.dialects.bodies import TOKEN_COUNT_MAX
from covey.errors import CallError

Prompts: TypeAlias = str | list[str | int | list[int]]
"""One text, several, one sequence of token ids, or several of those; never a mixture."""


class StreamOptions(msgspec.Struct):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None


def wants_usage(options: StreamOptions | None, *, stream: bool) -> bool:
    """Whether a stream is to end with usage.

    Raises:
        CallError: `invalid`: there is no stream.
    """
    if options is None:
        return False
    if not stream:
        raise CallError("invalid", "stream_options is only allowed with stream: true.", param="stream_options")
    return bool(options.include_usage)


def read_prompts(prompts: Prompts, param: str, *, count_max: int, empty: bool) -> list[str | tuple[int, ...]]:
    """Each text or sequence of tokens.

    Args:
        prompts: what the client sent.
        param: its field.
        count_max: how many there may be.
        empty: whether a text may be "".

    Raises:
        CallError: `invalid`: none, too many, a mixture, an empty one, or what is no token's id.
    """
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], int):
        return [_tokens(prompts, param)]
    listed = prompts if isinstance(prompts, list) else [prompts]
    if not 0 < len(listed) <= count_max:
        raise CallError("invalid", f"{param} must hold 1 to {count_max} entries.", param=param)
    found = [
        _one(one, param if listed is not prompts else f"{param}[{i}]", empty=empty) for i, one in enumerate(listed)
    ]
    if any(isinstance(one, str) != isinstance(found[0], str) for one in found):
        raise CallError("invalid", f"{param} must hold either texts or sequences of tokens.", param=param)
    return found


def _one(one: str | int | list[int], param: str, *, empty: bool) -> str | tuple[int, ...]:
    if isinstance(one, str):
        if not one and not empty:
            raise CallError("invalid", f"{param} must not be empty.", param=param)
        return one
    if isinstance(one, int):
        raise CallError("invalid", f"{param} must be a text or a sequence of tokens.", param=param)
    return _tokens(one, param)


def _tokens(tokens: list[int] | list[str | int | list[int]], param: str) -> tuple[int, ...]:
    if not tokens:
        raise CallError("invalid", f"{param} must not be empty.", param=param)
    found = cast("tuple[int, ...]", tuple(tokens))
    # Millions fit into a body: each step here is one call over all of them.
    if set(map(type, found)) == {int} and min(found) >= 0 and max(found) <= TOKEN_COUNT_MAX:
        return found
    kinds = list(map(type, found))
    if strange := next((kind for kind in kinds if kind is not int), None):
        wrong = kinds.index(strange)
    else:
        wrong = found.index(min(found) if min(found) < 0 else max(found))
    raise CallError("invalid", f"{param}[{wrong}] is not the id of a token.", param=f"{param}[{wrong}]")
