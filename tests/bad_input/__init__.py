"""Bad input, a table of cases for each group; `python -m tests.bad_input` prints how many are refused clearly."""

import importlib

GROUPS = ("ops", "models", "samplers", "data", "checkpoints", "command_line")


def load(groups):
    """The cases of each group."""
    return {group: importlib.import_module(f"tests.bad_input.{group}").CASES for group in groups}
