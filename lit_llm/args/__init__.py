"""Every option that a user sees, a module per group of scripts: frozen dataclasses without torch, so that `--help` is instant.

The docstring under a field is its help. `__post_init__` raises ValueError with one line for each mistake.
"""
