"""An instrumented forward pass: what modules take and give read by hooks, no model code copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calib.network import Network
from calib.quant.families import block_names, is_swin

Wanted = Literal["values", "queries"]


@contextmanager
def reading(modules: Mapping[str, nn.Module], read: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """While open, ``read(name, input, output)`` is called after each forward pass of each of ``modules``, by name."""
    hooks = [
        module.register_forward_hook(lambda _module, args, out, name=name: read(name, args[0], out))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class AttentionTaps:
    """While open, keeps what every block's attention did in the latest forward pass; one entry a block, in order.

    ``values``: the attention output A.V split by head, (B', H, T, d). ``queries`` and ``keys``: the same shape, before
    any scaling. T tokens with the prefix tokens (class, registers) first; for Swin the tokens of one window and
    B' = images * windows. They carry gradients. Only what is ``wanted`` is kept.
    """

    def __init__(self, model: Network, wanted: Iterable[Wanted] = ("values",)) -> None:
        self._model = model
        self._wanted = frozenset(wanted)
        self.values: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.attentions: list[Network] = [model.get_submodule(f"{name}.attn") for name in block_names(model)]
        self.prefix_tokens = 0 if is_swin(model) else int(model.num_prefix_tokens)
        self._hooks: list[Any] = []

    def __enter__(self) -> AttentionTaps:
        self._hooks.append(self._model.register_forward_pre_hook(lambda module, args: self._clear()))
        for attention in self.attentions:
            if "values" in self._wanted:
                self._hooks.append(attention.proj.register_forward_pre_hook(self._value_reader(attention)))
            if "queries" in self._wanted:
                self._hooks.append(attention.register_forward_pre_hook(self._read_mask, with_kwargs=True))
                if is_swin(self._model):
                    self._hooks.append(attention.qkv.register_forward_hook(self._split_reader(attention)))
                else:
                    self._hooks.append(attention.q_norm.register_forward_hook(self._reader(self.queries)))
                    self._hooks.append(attention.k_norm.register_forward_hook(self._reader(self.keys)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _clear(self) -> None:
        for kept in (self.values, self.queries, self.keys, self.masks):
            kept.clear()

    def _value_reader(self, attention: Network) -> Any:
        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.values.append(_by_head(args[0], attention.num_heads))

        return read

    def _read_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.masks.append(kwargs.get("mask"))

    @staticmethod
    def _reader(into: list[Tensor]) -> Any:
        def read(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            into.append(out)

        return read

    def _split_reader(self, attention: Network) -> Any:
        def read(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            queries, keys, _ = out.chunk(3, dim=-1)
            self.queries.append(_by_head(queries, attention.num_heads))
            self.keys.append(_by_head(keys, attention.num_heads))

        return read

    def profile(self, block: int) -> Tensor:
        """How much attention each patch receives in one block, head by head: (B', H, N), N patches or window tokens.

        The class token's row of softmax(q k^T / sqrt(d)), without the prefix tokens' keys; where there is no class
        token (Swin, average pooling) the mean over all rows, with Swin's position bias and window mask. Needs
        ``queries``.
        """
        attention, queries, keys = self.attentions[block], self.queries[block], self.keys[block]
        if getattr(self._model, "has_class_token", False):
            queries = queries[:, :, :1]
        with torch.autocast(device_type=queries.device.type, enabled=False):
            kind = torch.float64 if queries.dtype == torch.float64 else torch.float32
            scores = (queries.to(kind) * attention.scale) @ keys.to(kind).transpose(-2, -1)
            if is_swin(self._model):
                scores = scores + attention._get_rel_pos_bias().to(kind)
                mask = self.masks[block]
                if mask is not None:
                    rows, heads, tokens, _ = scores.shape
                    windows = scores.view(-1, mask.shape[0], heads, tokens, tokens) + mask[None, :, None].to(kind)
                    scores = windows.view(rows, heads, tokens, tokens)
            return scores.softmax(-1).mean(2)[..., self.prefix_tokens :]


def _by_head(x: Tensor, heads: int) -> Tensor:
    rows, tokens, width = x.shape
    return x.reshape(rows, tokens, heads, width // heads).transpose(1, 2)
