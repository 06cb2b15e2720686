"""Copies of the network to synthesise with: frozen, in the fastest precision, the caller's own left alone."""

from __future__ import annotations

import copy
import os

import torch
from torch import Tensor, nn

from calib.memory import physical_memory
from calib.models import ModelSpec
from calib.network import Network
from calib.precision import has_fast_bf16
from calib.quant.families import block_names, is_swin

CPU_BATCH = 8  # measured on ViT-Ti: larger groups are slower per image on a core (benches/results/synthesis_speed.json)
CUDA_BATCH = 256
HEADROOM = 2.5  # what the backward pass and the priors need on top of what the forward pass keeps


def twins(model: nn.Module, count: int, device: str) -> list[nn.Module]:
    """``count`` frozen copies of ``model`` in eval mode on ``device``, sharing one set of weights.

    Hooks on one are not seen by another, so each serves a thread. Where bfloat16 is fast, the weights of linear and
    convolution layers are kept in it (autocast would convert them at every step). On the CPU attention is computed
    plainly: the fused kernel's backward pass takes several times as long there.
    """
    base = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    kind = torch.device(device).type
    if has_fast_bf16(kind):
        for module in base.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
    if kind == "cpu":
        for name in block_names(base):
            attention: Network = base.get_submodule(f"{name}.attn")
            attention.fused_attn = False
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    return [base, *(copy.deepcopy(base, dict(shared)) for _ in range(count - 1))]


def half_size(model: nn.Module, spec: ModelSpec) -> nn.Module | None:
    """``model`` for images of half the height and width, by timm's own resizing; it shares all other weights.

    None where that cannot be: Swin, whose windows would not fit, and grids with an odd or unequal side.
    """
    if is_swin(model):
        return None
    network: Network = model
    rows, columns = network.patch_embed.grid_size
    if rows != columns or rows % 2 or network.pos_embed is None:
        return None
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    half: Network = copy.deepcopy(network, shared)
    half.set_input_size(img_size=(spec.input_size[1] // 2, spec.input_size[2] // 2))
    small: nn.Module = half.requires_grad_(False)
    return small


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) float32 in the precision ``twins`` prepared."""
    kind = images.device.type
    with torch.autocast(device_type=kind, dtype=torch.bfloat16, enabled=has_fast_bf16(kind)):
        logits: Tensor = model(images)
    return logits.float()


def kept_bytes(model: nn.Module, spec: ModelSpec, device: str) -> int:
    """Bytes the forward pass of one image keeps for the backward pass: measured by running it."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros((1, *spec.input_size), device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = forward(model, images)
    del logits
    return sum(kept.values())


def fitting_batch(model: nn.Module, spec: ModelSpec, device: str, views: int, budget: int | None = None) -> int:
    """How many images to optimise together: the largest power of two that fits the memory.

    Args:
        views: most network inputs an image gives rise to. budget: bytes; default: on CUDA 80 % of the device, else
            half of the memory there is (or that a container may use), shared by all cores.
    """
    cuda = torch.device(device).type == "cuda"
    if budget is None:
        if cuda:
            budget = int(0.8 * torch.cuda.mem_get_info(device)[1])
        else:
            budget = physical_memory() // 2 // available_cores()
    need = max(1, int(kept_bytes(model, spec, device) * views * HEADROOM))
    batch = 1
    while batch * 2 <= (CUDA_BATCH if cuda else CPU_BATCH) and batch * 2 * need <= budget:
        batch *= 2
    return batch


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
