"""Stand-in for the table of model families: empty. The branch `targets` brings the real one, of the same signature."""


def drafter_of(target: str, kind: str) -> str | None:
    """The hub id of the drafter of that kind known for a target, given by hub id or folder; None where none is."""
    return None
