"""How many connections the operating system lets this process have."""

import logging
import resource

log = logging.getLogger(__name__)

RESERVED = 250
"""What the node needs beside its clients' connections: the store's files, peers, engines."""


def allow_connections(wanted: int) -> int:
    """Raise this process's limit of open files, as far as it may and no further than needed; how many fit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    fit = max(soft - RESERVED, soft // 2)
    log.warning(
        "Only %d of the %d connections of [http] connections_max can be open at once: the system allows this process %d"
        " open files. Raise the hard limit (ulimit -Hn, LimitNOFILE= in systemd), or set connections_max lower.",
        fit, wanted, hard,
    )  # fmt: skip
    return fit
