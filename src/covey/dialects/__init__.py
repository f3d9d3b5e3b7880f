"""The shapes of other people's APIs, to and from ours. Pure; the gateway uses them as a server, back ends as clients."""
