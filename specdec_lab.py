"""The `specdec` command line: the only place that knows every folder; imports lazily."""


def main() -> None:
    """Run the command line."""
