"""docs/guide.md names every verb and every option, and what the documents tell people to type can be typed."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from documents import code, read, table

from covey.cli.app import root
from covey.cli.verbs import Settings

GUIDE = "docs/guide.md"


def walk(command: click.Command, context: click.Context, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Every command with its path; groups that do nothing by themselves are left out."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield " ".join(path), command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, click.Context(inner, parent=context, info_name=name), (*path, name))


COMMANDS = dict(walk(root, click.Context(root, info_name="covey"), ("covey",)))


def parse(line: str) -> None:
    """Take a command line apart as the program does, and run nothing; raises click's errors."""
    arguments = shlex.split(line, comments=True)[1:]
    context = root.make_context("covey", arguments, obj=Settings())
    group: click.Command = root
    while isinstance(group, click.Group) and (rest := [*context._protected_args, *context.args]):
        name, inner, rest = group.resolve_command(context, rest)
        assert inner is not None
        context = inner.make_context(name, rest, parent=context)
        group = inner


def typed(text: str) -> list[str]:
    """The lines of the shell blocks that begin with our name."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip().startswith("covey ")]


EXAMPLES = [(name, line) for name in ("README.md", GUIDE) for line in typed(read(name))]


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_option_is_in_the_guide(path: str) -> None:
    options = [option for one in COMMANDS[path].params if isinstance(one, click.Option) for option in one.opts]
    missing = [one for one in options if one.startswith("--") and not re.search(rf"{one}(?![\w-])", read(GUIDE))]
    assert not missing, f"{path}: say what {', '.join(missing)} does"


def test_every_verb_has_its_line_and_no_other() -> None:
    listed = [code(row[0])[0] for row in table(read(GUIDE), "Every command")]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("row", table(read(GUIDE), "Every command"), ids=lambda row: code(row[0])[0])
def test_the_example_of_a_verb_can_be_typed(row: list[str]) -> None:
    name, example = code(row[0])[0], code(row[1])[0]
    assert example == name or example.startswith(f"{name} ")
    parse(example)


@pytest.mark.parametrize(("document", "line"), EXAMPLES)
def test_what_people_are_told_to_type_can_be_typed(document: str, line: str) -> None:
    parse(line)
