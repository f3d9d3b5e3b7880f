"""Covey's way between machines: libp2p over TCP, with Noise and yamux. Nothing else in Covey imports libp2p.

Start with `host.open_libp2p`. Of py-libp2p 0.8.1 this uses the keys, the Noise handshake and the messages of circuit
relay v2, and leaves its `BasicHost`, `Swarm` and `Yamux` alone: what those do wrong (each module here says what) cannot
be mended from outside without patching private code. So nothing is monkeypatched. The wire is theirs all the same: a
stock py-libp2p host talks to this one (tests/contract/test_libp2p_interop.py).

Importing this package imports no libp2p (0.9 s, 47 MB); importing `host` does.
"""
