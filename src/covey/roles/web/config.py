"""The `[web]` table of the configuration."""

import msgspec


class WebConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[web]` of the configuration.

    Args:
        site_title: what the pages call this service.
        refresh_seconds: how often the overview and the page of machines ask for news while they are being looked at.
        chat_body_bytes_max: the longest conversation that the chat sends, as JSON. It is kept in the page alone,
            so every message carries all those before it.
        chat_tokens_max: the longest answer that the chat asks for; a small model may ramble on.
        body_seconds_max: the longest that a request's body may take to arrive.
    """

    site_title: str = "Covey"
    refresh_seconds: int = 2
    chat_body_bytes_max: int = 2_000_000
    chat_tokens_max: int = 1_024
    body_seconds_max: int = 15
