def why_not(*, wide: bool = False) -> str | None:
    """Say why io_uring cannot be used here, with commands of files if ``wide``, or return None when it can."""
