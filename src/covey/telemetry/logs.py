"""Structured logs, as text or as JSON lines, through one redacting filter."""

import json
import logging
import random
import re
import sys
import time
from contextvars import ContextVar
from typing import IO, Literal

_ids = random.Random()  # noqa: S311 - names, no secrets: the system's own randomness costs a request as much as its log line
_request_id: ContextVar[str] = ContextVar("covey_request_id", default="")

SECRET_PATTERN = re.compile(
    r"""cvy_[A-Za-z0-9]+_[A-Za-z0-9_]+          # API keys
      | covey1[a-z2-7]{16,}                     # invites of machines
      | \b(?:sk|hf|gsk)[-_][A-Za-z0-9_-]{16,}   # upstreams' keys
      | (?P<kept>(?i:\bbearer)\s+)[A-Za-z0-9._~+/-]{8,}=*
      | (?<=\#)[A-Za-z0-9_-]{20,}               # secrets in a URL's fragment
      | \$argon2id?\$[^\s"']+
    """,
    re.VERBOSE,
)
REDACTED = "[redacted]"

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a request id may be: whoever sends one, a client or a peer, cannot draw lines or fields into our log with it."""


def current_request_id() -> str:
    """The id of the request that this task works for; "" outside one."""
    return _request_id.get()


def set_request_id(request_id: str) -> None:
    """Tie this task, and the tasks it starts from now on, to a request."""
    _request_id.set(request_id)


def new_request_id() -> str:
    """For a request whose caller gave none."""
    return f"req_{new_id()}"


def new_id() -> str:
    """24 hexadecimal digits that nothing else is called by. No secret: another may be guessed from many of them."""
    return f"{_ids.getrandbits(96):024x}"


def sane_request_id(said: str) -> str:
    """The request id that somebody else says, or "" where it is none: it goes into the log, and into headers."""
    return said if REQUEST_ID_PATTERN.fullmatch(said) else ""


def redact(text: str) -> str:
    """A text without the secrets that have a known shape."""
    return SECRET_PATTERN.sub(lambda found: (found["kept"] or "") + REDACTED, text)


class RedactingFilter(logging.Filter):
    """Resolves a record's message once and takes the secrets out, for whatever formatter follows."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always keeps the record."""
        record.msg = redact(_message(record))
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:  # maybe cached by another handler's formatter
            record.exc_text = redact(record.exc_text)
        return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - whatever an argument does: a log call must not break its caller
        return f"{record.msg} (not formatted: {type(error).__name__})"


class TextFormatter(logging.Formatter):
    """`12:00:00 warning gateway: message (request 1f…)`."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """One line, with a traceback below it only where asked for."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {_short(record.name)}: {_one_line(record.getMessage())}"
        if request_id := current_request_id():
            line += f" (request {request_id})"
        if record.exc_text:
            line += "\n" + record.exc_text if self._tracebacks else " — " + _one_line(_last_words(record.exc_text))
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: `ts` (Unix seconds), `level`, `logger`, `message`, `request_id`, `error`, and what the call
    gave as `extra={"fields": {...}}`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, object] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": _short(record.name),
            "message": record.getMessage(),
        }
        if request_id := current_request_id():
            entry["request_id"] = request_id
        if record.exc_text:
            entry["error"] = record.exc_text
        for name, value in _fields(record).items():
            entry.setdefault(name, redact(value) if isinstance(value, str) else value)
        # A lone surrogate is no UTF-8, but `\udc00` is JSON.
        return json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def configure(
    *, level: str, style: Literal["text", "json"], tracebacks: bool = False, stream: IO[str] | None = None
) -> None:
    """Send the logs of Covey and its libraries to `stream` (default: standard error), redacted. For programs' main()
    alone: who embeds Covey keeps their own logging.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(RedactingFilter())
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter(tracebacks=tracebacks))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("covey").setLevel(level.upper())


def _last_words(traceback: str) -> str:
    """What a traceback ends with; of a group's, what its last exception ends with: a frame is drawn around that."""
    words = (line.strip(" |+-") for line in reversed(traceback.splitlines()))
    return next((line for line in words if line), "")


def _one_line(text: str) -> str:
    """Control characters as escapes: what somebody else chose must not look like a line of ours."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _short(name: str) -> str:
    return name.removeprefix("covey.")
