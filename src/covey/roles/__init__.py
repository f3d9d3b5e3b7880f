"""The roles: start reading here.

| role | needs first | opened by | serves |
| --- | --- | --- | --- |
| auth | | `roles.auth.role.open_auth` | people, sessions, API keys, membership: `contracts.auth` |
| inference | | `roles.inference.role.open_inference` | models through back ends: `contracts.inference` |
| gateway | auth, inference | `roles.gateway.role.open_gateway` | the HTTP API; `contracts.gateway` |
| web | auth, gateway | `roles.web.role.open_web` | the dashboard |

"Needs first" holds where both run in one node; elsewhere a role waits for nobody. `covey.node` is the only place that
wires roles to anything; it finds them by name through the entry points `covey.roles`, as it finds third parties'.
"""

BUILT_IN = {
    "auth": "covey.roles.auth.role:ROLE",
    "inference": "covey.roles.inference.role:ROLE",
    "gateway": "covey.roles.gateway.role:ROLE",
    "web": "covey.roles.web.role:ROLE",
}
"""Name to entry point, in starting order; a test holds it to the package's metadata and to each role's `after`."""
