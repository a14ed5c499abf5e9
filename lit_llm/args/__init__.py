"""The options of all scripts, a module per group of scripts: frozen dataclasses without torch, so that `--help` is instant.

The docstring under a field is its help. `__post_init__` raises OptionError with one line for each mistake.
"""
