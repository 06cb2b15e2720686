"""What an inspection finds, whatever the backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from runtime.manifest import Layer
from runtime.onnx_wire import Graph


@dataclass(frozen=True)
class LayerRow:
    """One linear layer, convolution or integer attention product. ``macs`` per image; ``executed_as`` is its kernel.

    Attributes:
        integer: whether that kernel multiplies integers. stored_bytes: size of its weights in the file.
        milliseconds: of its kernel and what is fused into it, one image a call; None where it was not timed.
    """

    name: str
    macs: int
    weight_bits: int
    activation_bits: int
    stored_as: str
    executed_as: str
    integer: bool
    stored_bytes: int
    milliseconds: float | None = None

    @classmethod
    def of(
        cls, layer: Layer, stored: Graph, executed_as: str, integer: bool, milliseconds: float | None = None
    ) -> LayerRow:
        """The row of a manifest's layer, its weights those of the ``stored`` graph."""
        weights = stored.constant.get(f"{layer.name}.weight_q")
        return cls(
            name=layer.name,
            macs=layer.macs,
            weight_bits=layer.weight_bits,
            activation_bits=layer.activation_bits,
            stored_as=layer.stored_as,
            executed_as=executed_as,
            integer=integer,
            stored_bytes=len(weights.raw) if weights is not None else 0,
            milliseconds=milliseconds,
        )


@dataclass(frozen=True)
class Inspection:
    """Every layer of the manifest as it runs.

    Attributes:
        operators: node counts of what is executed. warnings: one line for each thing that is not as it should be.
        milliseconds: of all nodes together, one image a call; None where they were not timed. notes: what else there is
        to say of the engine, a line each.
        float_operators: node counts of what gives a float tensor; None where the backend does not tell.
    """

    layers: tuple[LayerRow, ...]
    operators: dict[str, int]
    warnings: tuple[str, ...]
    milliseconds: float | None = None
    notes: tuple[str, ...] = ()
    float_operators: dict[str, int] | None = None

    @property
    def integer_mac_fraction(self) -> float:
        """Part (0..1) of the MACs of the manifest's layers that run on integer kernels.

        Those are linear layers and convolutions, and with ``+attn8`` both attention products; float products do not
        count.
        """
        return sum(row.macs for row in self.layers if row.integer) / max(sum(row.macs for row in self.layers), 1)

    def to_json(self) -> dict[str, Any]:
        """The fixed keys, and beside them operators, the bytes of the weights, warnings, milliseconds and notes."""
        return {
            "integer_mac_fraction": self.integer_mac_fraction,
            "layers": [asdict(row) for row in self.layers],
            "operators": self.operators,
            "float_operators": self.float_operators,
            "linear_weight_bytes": sum(row.stored_bytes for row in self.layers),
            "warnings": list(self.warnings),
            "milliseconds": self.milliseconds,
            "notes": list(self.notes),
        }
