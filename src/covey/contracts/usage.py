"""What was used: one record for each request, written where it ended. Never a word of a prompt or an answer."""

import msgspec


class UsageRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request.

    `ended_at`: Unix seconds. `key_id` is `session:<account id>` or `operator` where no key was shown. `node`: the name
    of the machine that ran it, "" where none did. `route`: the API path, or the method of the bus. `outcome`: `ok`,
    `cancelled`, or the error's code.
    """

    ended_at: float
    request_id: str
    key_id: str
    owner: str
    model: str
    node: str
    route: str
    outcome: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
