def why_not() -> str | None:
    """Say why io_uring cannot be used here, or return None when it can."""
