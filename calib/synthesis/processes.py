"""Several processes, on one machine or many, that share the groups of one set (started by torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from calib.synthesis.engine import Made, Share
from calib.synthesis.twin import available_cores

PATIENCE = timedelta(days=30)  # who is done waits for the others, however much slower they are


@dataclass(frozen=True)
class Place:
    """Which process this is: ``rank`` of ``world``, and ``local`` of ``here`` on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1

    @property
    def share(self) -> Share:
        """The part of the groups this process makes."""
        return Share(self.rank, self.world)

    def device(self, kind: str) -> str:
        """``cpu``, or the CUDA device of this process."""
        return f"cuda:{self.local % torch.cuda.device_count()}" if kind == "cuda" else kind

    def workers(self) -> int:
        """Threads this process may use on the CPU: torch's setting when alone, else its part of the cores."""
        return torch.get_num_threads() if self.world == 1 else max(1, available_cores() // self.here)


@contextmanager
def joined() -> Iterator[Place]:
    """This process's place; while open, the processes can talk to one another (gloo, over the CPU)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Place()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Place(
            dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        )
    finally:
        dist.destroy_process_group()


def agree(number: int, place: Place) -> int:
    """The ``number`` of rank 0, in every process: all must ask."""
    if place.world == 1:
        return number
    held = [number]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gather(made: list[Made], place: Place) -> list[Made] | None:
    """Everybody's groups on rank 0, None elsewhere."""
    if place.world == 1:
        return made
    everybody: list[list[Made]] | None = [[] for _ in range(place.world)] if place.rank == 0 else None
    dist.gather_object(made, everybody)
    return None if everybody is None else [group for part in everybody for group in part]
