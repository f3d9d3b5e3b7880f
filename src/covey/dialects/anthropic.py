"""Anthropic's API, as a server speaks it: messages, whole and streamed, and the count of a request's tokens.

Source: the Anthropic API reference, "Create a Message", "Streaming Messages", "Count tokens in a Message", "Errors".
Unknown fields are ignored; a known one that we cannot honour is refused by name: never silently dropped.
"""

from covey.dialects.anthropic_messages import parse_count, parse_messages
from covey.dialects.anthropic_problems import error_body
from covey.dialects.anthropic_writer import PING, counted

__all__ = ["PING", "counted", "error_body", "parse_count", "parse_messages"]
