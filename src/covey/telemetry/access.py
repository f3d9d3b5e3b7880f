"""The access log: one line for each HTTP request, when it has ended.

`covey.http.access` begins a note for every request and writes its line; what only others know (the route, who asked,
which model on which machine, how many tokens) they add on the way, from whatever task works for the request here.
Never a query string, a prompt, or a secret.
"""

import logging
from contextvars import ContextVar
from dataclasses import dataclass, fields

log = logging.getLogger("covey.access")

PATH_CHARS_MAX = 200


@dataclass(slots=True)
class Note:
    """What is known of a request so far.

    Args:
        method, path: as asked.
        client: its address.
        route: the path as a template; "": it is no route.
        status: of the answer, 499 where the client had gone before there was one.
        sent_bytes: of the answer's body.
        seconds: from the request's head to the answer's end.
        key_id: the public id of its key, or `session:<account id>`.
        owner: the account's id.
        model, node: who answered; "": none did.
        outcome: as in the usage: `ok`, `cancelled`, or the error's code.
    """

    method: str
    path: str
    client: str = ""
    route: str = ""
    status: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0
    key_id: str = ""
    owner: str = ""
    model: str = ""
    node: str = ""
    outcome: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


_note: ContextVar[Note | None] = ContextVar("covey_access_note", default=None)


def begin(note: Note) -> None:
    """Tie this task, and the tasks it starts from now on, to a request."""
    _note.set(note)


def note_route(route: str) -> None:
    """The route that the request has taken, as a template: of few values, for it becomes a label of the metrics."""
    if (note := _note.get()) is not None:
        note.route = route


def note_caller(key_id: str, owner: str) -> None:
    """Who asks."""
    if (note := _note.get()) is not None:
        note.key_id, note.owner = key_id, owner


def note_use(
    *, key_id: str, owner: str, model: str, node: str, outcome: str, prompt_tokens: int, completion_tokens: int
) -> None:
    """What became of it, as the usage has it. Nothing outside an HTTP request."""
    if (note := _note.get()) is not None:
        note.key_id, note.owner, note.model, note.node, note.outcome = key_id, owner, model, node, outcome
        note.prompt_tokens += prompt_tokens
        note.completion_tokens += completion_tokens


def write(note: Note) -> None:
    """The line of a request that has ended; as JSON, each of its values is a field, too, where there is one."""
    path = note.route or note.path[:PATH_CHARS_MAX]
    words = [f"{note.method[:20]} {path} {note.status}, {note.sent_bytes} bytes in {note.seconds:.3f} s"]
    if note.client:
        words.append(f"for {note.client}")
    if note.key_id:
        words.append(f"by {note.key_id}" + (f" of {note.owner}" if note.owner else ""))
    if note.model:
        words.append(f"{note.model}" + (f" on {note.node}" if note.node else ""))
    if note.outcome:
        words.append(f"{note.outcome}, {note.prompt_tokens}+{note.completion_tokens} tokens")
    log.info("%s", "; ".join(words), extra={"fields": _fields(note, path)})


def _fields(note: Note, path: str) -> dict[str, object]:
    found: dict[str, object] = {"status": note.status}
    for field in fields(note):
        if value := getattr(note, field.name):
            found[field.name] = value
    found.update(path=path, method=note.method[:20], seconds=round(note.seconds, 6))
    return found
