"""The command line: one file per group of verbs. It talks to the running node over the Unix socket of its data folder.

Start at `covey.cli.app`. Heavy imports are inside the commands: `covey --help` and `covey status` must be quick.
"""
