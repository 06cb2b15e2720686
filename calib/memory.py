"""What an error says of memory."""

from __future__ import annotations


def out_of_memory(error: Exception) -> bool:
    """Whether the error says that memory ran out: Python's own, or torch's on a GPU or on the CPU."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )
