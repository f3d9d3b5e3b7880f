"""The shapes of other people's APIs, to and from ours. Pure; used by the gateway and by back ends."""
