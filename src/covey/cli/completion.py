"""`covey completion`: what a shell needs to complete our verbs and options."""

import click

from covey.cli.verbs import verb

SHELLS = ("bash", "zsh", "fish")


@verb("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash  covey completion bash > ~/.local/share/bash-completion/completions/covey
    zsh   covey completion zsh > ~/.zfunc/_covey   (with ~/.zfunc in fpath)
    fish  covey completion fish > ~/.config/fish/completions/covey.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(kind(context.find_root().command, {}, "covey", "_COVEY_COMPLETE").source())
