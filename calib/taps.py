"""One instrumented forward pass: attention outputs read by hooks, no model code copied."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor, nn

from calib.network import Network
from calib.quant.families import block_names


class AttentionOutputs:
    """While open, keeps every block's attention output A.V, split by head, of the latest forward pass.

    ``values`` holds one (B', H, T, d) tensor a block, in execution order: T tokens with the prefix tokens (class,
    registers) first, or, for Swin, the tokens of a window with B' = images * windows. They carry gradients.
    """

    def __init__(self, model: Network) -> None:
        self._model = model
        self.values: list[Tensor] = []
        self._hooks: list[object] = []

    def __enter__(self) -> AttentionOutputs:
        for name in block_names(self._model):
            attention: Network = self._model.get_submodule(f"{name}.attn")

            def read(module: nn.Module, args: tuple[Tensor, ...], heads: int = attention.num_heads) -> None:
                rows, tokens, width = args[0].shape
                self.values.append(args[0].reshape(rows, tokens, heads, width // heads).transpose(1, 2))

            self._hooks.append(attention.proj.register_forward_pre_hook(read))
        self._hooks.append(self._model.register_forward_pre_hook(lambda module, args: self.values.clear()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()  # type: ignore[attr-defined]
