"""What the roles say to each other: frozen messages and method constants. Pure: no I/O, no trio.

A contract is a value, declared once and used by caller and callee; grepping its name finds both sides.
Fields are only ever added, with a default: a node one version older ignores what it does not know.
"""
