"""What the fakes of TensorRT and CUDA share: one record of every call, device memory, and the rules they watch over."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GPU_NAME, SM = "Fake Orin", "8.7"


class Segfault(BaseException):
    """What the real library does where this is raised: the process would be gone."""


@dataclass
class World:
    """One machine.

    Attributes:
        log: (thread-independent) names of all calls, in order, "new X" and "del X" for objects.
        calls: the same with their arguments.
        driver: whether there is one; without it Builder and Runtime crash.
        faults: what shall go wrong: parse, build, build_raises, deserialize, context, execute, timing, allocate.
        memory: device buffers by address. live: objects by class.
        broken: rules that were broken; a test ends with this empty.
    """

    driver: bool = True
    faults: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    memory: dict[int, bytearray] = field(default_factory=dict)
    pages: list[tuple[int, int]] = field(default_factory=list)
    live: Counter[str] = field(default_factory=Counter)
    children: dict[int, set[int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    capturing: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    sticky: bool = False
    current: threading.local = field(default_factory=threading.local)
    serial: Any = field(default_factory=lambda: itertools.count(1))
    addresses: Any = field(default_factory=lambda: itertools.count(0x10000, 0x100000))

    def record(self, name: str, *arguments: Any) -> None:
        """Note a call; an object among the arguments is noted by its class, so that noting keeps nothing alive."""
        self.log.append(name)
        plain = (int, str, bytes, tuple, list)
        self.calls.append((name, tuple(one if isinstance(one, plain) else type(one).__name__ for one in arguments)))

    def born(self, kind: str, parent: int = 0) -> int:
        """Note a new object that must not outlive ``parent``; its number."""
        number = int(next(self.serial))
        self.record(f"new {kind}")
        self.live[kind] += 1
        self.children[number] = set()
        if parent:
            self.children[parent].add(number)
        return number

    def gone(self, kind: str, number: int) -> None:
        """Note the end of an object; what was made from it must be gone before."""
        self.record(f"del {kind}")
        self.live[kind] -= 1
        if self.children.pop(number, set()):
            self.broken.append(f"{kind} went before what was made from it")
        for others in self.children.values():
            others.discard(number)

    def depth(self) -> int:
        """How often this thread has made the context current."""
        return int(getattr(self.current, "depth", 0))

    def need_context(self, what: str) -> None:
        """A CUDA call outside a current context is an error."""
        if self.depth() < 1:
            self.broken.append(f"{what} without a current context")

    def enqueue(self, stream: int, work: Callable[[], None], what: str) -> None:
        """Work on a stream: done at once, or recorded while the stream is being captured."""
        if stream not in self.streams:
            self.broken.append(f"{what} on stream {stream}, which is the default one or gone")
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()

    def buffer(self, address: int, nbytes: int) -> memoryview:
        """Device memory from an address on.

        Raises:
            Segfault: it is not allocated.
        """
        for base, data in self.memory.items():
            if base <= address and address + nbytes <= base + len(data):
                return memoryview(data)[address - base : address - base + nbytes]
        raise Segfault(f"{nbytes} bytes at {address:#x} are not allocated")

    def allocate(self, nbytes: int) -> int:
        """A buffer's address; 0 where memory shall be used up."""
        self.need_context("allocation")
        if self.faults.get("allocate"):
            return 0
        address = int(next(self.addresses))
        self.memory[address] = bytearray(nbytes)
        return address

    def of(self, *names: str) -> list[str]:
        """The record, but only these names."""
        return [name for name in self.log if name in names]

    def check_empty(self) -> None:
        """Nothing is left but the GPU's own context, which the process keeps, and no rule was broken."""
        assert self.broken == []
        assert {kind: count for kind, count in self.live.items() if count and kind != "Context"} == {}
        assert self.memory == {} and self.streams == set()
        assert self.sticky or self.depth() == 0
