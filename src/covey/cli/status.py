"""`covey status`: the node, its roles and models, and the other machines of its network."""

from typing import TYPE_CHECKING, Any

import click

from covey.cli.asking import ask_node
from covey.cli.output import print_json, print_pairs, size, span
from covey.cli.verbs import Settings, json_option, verb

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.cluster import LinkList, LinkStatus, NodeStatus
    from covey.contracts.gateway import ModelSummary
    from covey.contracts.replication import Replications


@verb("status")
@json_option
@click.pass_obj
def status(settings: Settings, *, as_json: bool) -> None:
    """Show the running node: roles, addresses, models, memory, and the network's other machines."""
    from covey.cli import replication
    from covey.cli.nodes import as_rows

    node, links, live, models, feeds = ask_node(settings, _status)
    if as_json:
        network = {"nodes": as_rows(node, links, live), "removed": links.removed, "replication": feeds}
        print_json({**_as_json(node, models), "labels": links.labels, **network})
        return
    state = "draining" if node.draining else f"running for {span(node.uptime_seconds)}"
    print_pairs(
        [
            ("node", f"{node.name} ({state})"),
            ("peer id", node.peer_id),
            ("roles", ", ".join(node.roles)),
            *([("labels", ", ".join(links.labels))] if links.labels else []),
            ("address", "\n".join(node.urls) or "none"),
            ("models", "\n".join(_model_line(model) for model in models) or "none"),
            ("network", _network(links, live)),
            *replication.lines(feeds),
            ("memory", size(node.memory_bytes)),
            ("version", f"Covey {node.version}, Python {node.python}"),
        ]
    )


async def _status(
    client: "Client",
) -> "tuple[NodeStatus, LinkList, dict[str, NodeStatus], tuple[ModelSummary, ...], Replications]":
    from covey.cli.models import list_models
    from covey.cli.nodes import look
    from covey.contracts.method import Nothing
    from covey.contracts.replication import REPLICATIONS

    node, links, live = await look(client)
    feeds = await client.bus.call(REPLICATIONS, Nothing())
    return node, links, live, await list_models(client, node.name), feeds


def _network(links: "LinkList", live: "dict[str, NodeStatus]") -> str:
    if links.removed:
        return links.removed
    if not links.links:
        return "no other machine"
    return "\n".join(_link_line(link, live.get(link.peer)) for link in links.links)


def _link_line(link: "LinkStatus", status: "NodeStatus | None") -> str:
    what = f"{link.name} ({', '.join(status.roles if status else link.roles)})"
    if link.labels:
        what += f" labelled {', '.join(link.labels)}"
    if link.path == "down":
        return f"{what}: down{f': {link.failure}' if link.failure else ''}"
    way = link.path if link.rtt_seconds is None else f"{link.path}, {link.rtt_seconds * 1000:.1f} ms"
    return f"{what}: {'draining' if status and status.draining else 'linked'} ({way})"


def _as_json(node: "NodeStatus", models: "tuple[ModelSummary, ...]") -> dict[str, Any]:
    return {
        "node": node.name,
        "peer_id": node.peer_id,
        "network_id": node.network_id,
        "roles": node.roles,
        "urls": node.urls,
        "models": models,
        "versions": {"covey": node.version, "python": node.python},
        "memory_bytes": node.memory_bytes,
        "started_at": node.started_at,
        "uptime_seconds": round(node.uptime_seconds, 3),
        "draining": node.draining,
    }


def _model_line(model: "ModelSummary") -> str:
    progress = "" if model.progress is None or model.state != "loading" else f" {model.progress:.0%}"
    detail = f": {model.detail}" if model.detail else ""
    return f"{model.name} ({model.state.replace('_', ' ')}{progress}{detail})"
