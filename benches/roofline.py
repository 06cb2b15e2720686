"""How fast a layer could be: its operations over the arithmetic's rate or its bytes over the memory's."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from benches.kernel_shapes import Shape
from runtime.kernels.packing import padded


@dataclass(frozen=True)
class Ceilings:
    """Rates of a chip.

    Attributes:
        int8: dense int8 operations a second, a multiplication and an addition counted as two. f16: the same in float16.
        bandwidth: bytes a second of its memory. source: where the figures are from.
    """

    int8: float
    f16: float
    bandwidth: float
    source: str

    def as_json(self) -> dict[str, float | str]:
        """The four fields."""
        return asdict(self)


# By the name torch gives. Dense rates: half of what the datasheets print "with sparsity".
DATASHEETS = {
    "NVIDIA H200": Ceilings(1979e12, 989.5e12, 4.8e12, "NVIDIA H200 Tensor Core GPU datasheet, SXM, sparsity halved"),
    "NVIDIA H100 80GB HBM3": Ceilings(1979e12, 989.5e12, 3.35e12, "NVIDIA H100 datasheet, SXM, sparsity halved"),
    "NVIDIA A100-SXM4-80GB": Ceilings(624e12, 312e12, 2.039e12, "NVIDIA A100 datasheet, SXM 80 GB"),
}


def operations(shape: Shape, batch: int) -> int:
    """Multiplications and additions of a layer on ``batch`` images."""
    return 2 * shape.tokens * batch * shape.k * shape.n


def traffic(shape: Shape, batch: int, bits: int) -> int:
    """Bytes a layer must move, each operand once: activations, weights, scale and bias, a float16 output.

    Args:
        bits: of the weights; 16 stands for a float16 layer, whose activations are float16 too and which has no scale.
    """
    rows = shape.tokens * batch
    if bits == 16:
        return 2 * (rows * shape.k + shape.n * shape.k + shape.n + rows * shape.n)
    return rows * shape.k + shape.n * padded(shape.k) * bits // 8 + 8 * shape.n + 2 * rows * shape.n


def floor_seconds(shape: Shape, batch: int, bits: int, ceilings: Ceilings) -> float:
    """The least time a layer can take on a chip with these ceilings."""
    rate = ceilings.f16 if bits == 16 else ceilings.int8
    return max(operations(shape, batch) / rate, traffic(shape, batch, bits) / ceilings.bandwidth)


def sets_beyond(bytes_of_one: int, cache: int, most: int = 64) -> int:
    """How many sets of operands to go round so that together they are twice the cache: 2 at least, ``most`` at most."""
    return max(2, min(most, -(-2 * cache // bytes_of_one)))
