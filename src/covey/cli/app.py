"""The root of the command line, and the one place where its errors become a line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from covey.cli.verbs import LazyVerbs, Settings
from covey.errors import CallError, leaves
from covey.version import __version__

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

HOMES = {
    "up": "covey.cli.up:up",
    "join": "covey.cli.join:join",
    "invite": "covey.cli.invite:invite",
    "nodes": "covey.cli.nodes:nodes",
    "status": "covey.cli.status:status",
    "chat": "covey.cli.chat:chat",
    "users": "covey.cli.users:users",
    "keys": "covey.cli.keys:keys",
    "usage": "covey.cli.usage:usage",
    "audit": "covey.cli.audit:audit",
    "models": "covey.cli.models:models",
    "config": "covey.cli.configuration:config",
    "doctor": "covey.cli.doctor:doctor",
    "store": "covey.cli.store:store",
    "completion": "covey.cli.completion:completion",
}


@click.group(
    cls=LazyVerbs,
    homes=HOMES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `covey up`. `covey VERB --help` says more.",
)
@click.version_option(__version__, prog_name="covey", message="%(prog)s %(version)s")
def root() -> None:
    """Turn the machines you own into one private, OpenAI-compatible AI service."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line to its exit code: 0 done, 1 failed, 2 usage, 130 interrupted."""
    settings = Settings()
    _open_closed_streams()
    try:
        code = root.main(list(arguments), prog_name="covey", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except click.UsageError as error:
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        return _failed(error.format_message())
    except BrokenPipeError:
        return _reader_left()
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - the last resort of the program
        return _report(error, verbose=settings.verbose)
    return code if isinstance(code, int) else DONE


def _open_closed_streams() -> None:
    # `covey status >&-`: Python has no stream then, and the next file that is opened would be standard output.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _report(error: BaseException, *, verbose: bool) -> int:
    inner = list(leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in inner):
        return INTERRUPTED
    if any(isinstance(leaf, BrokenPipeError) for leaf in inner):
        return _reader_left()
    if verbose:
        traceback.print_exception(error)
    known = next((leaf for leaf in inner if isinstance(leaf, CallError)), None)
    if known is not None:
        return _failed(known.message)
    leaf = inner[0]
    what = " ".join(str(leaf).split())
    if isinstance(leaf, OSError) and leaf.strerror:
        return _failed(f"{leaf.filename}: {leaf.strerror}." if leaf.filename else f"{leaf.strerror}.")
    advice = "" if verbose else " Please report it, with what --verbose prints."
    return _failed(f"This is a bug ({type(leaf).__name__}: {what}).{advice}")


def _failed(message: str) -> int:
    from covey.telemetry.logs import redact

    click.echo(f"covey: {redact(message)}", err=True)
    return FAILED


def _usage(error: click.UsageError) -> int:
    where = f" Try: {error.ctx.command_path} --help" if error.ctx is not None else ""
    click.echo(f"covey: {error.format_message()}{where}", err=True)
    return USAGE


def _reader_left() -> int:
    # `covey keys list | head -1`: nobody reads on. What is still buffered must not fail again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
