"""Which network, with which weights, fed how: short names, timm tags, checkpoints and preprocessing."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as plain_vit_filter
from torch import nn

from calib.checkpoint import load_into, read_state_dict, reason, sha256_of
from calib.errors import IntvitError
from calib.given import PACKAGED, RANDOM, SHORT_NAMES
from calib.hub import fetch
from calib.quant.surgery import refuse_unknown_parts

vit_filter = functools.partial(plain_vit_filter, adapt_layer_scale=True)  # gamma_1, gamma_2: DeiT III's own releases
RESAMPLED = {  # what timm's filters stretch to the model's size, by the end of its name: the axes they change
    "pos_embed": slice(-2, -1),
    "patch_embed.proj.weight": slice(2, None),
    "relative_position_bias_table": slice(0, 1),
}
CLIP_NAMES = {"pos_embed": "visual.positional_embedding", "patch_embed.proj.weight": "visual.conv1.weight"}  # OpenAI's


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build the network again without its weights.

    Attributes:
        name: what the user typed. tag: timm's architecture and weight tag, or the packaged model's name.
        kwargs: constructor arguments of a packaged model, empty for a timm tag.
        input_size: (channels, height, width) in pixels. mean, std: per channel, of pixels in [0, 1].
        crop_pct: part of the resized picture's side that the centre crop keeps. class_ids: in logit order.
        crop_mode: timm's "center", "squash" or "border", see :class:`runtime.manifest.Preprocess`.
    """

    name: str
    tag: str
    kwargs: dict[str, Any]
    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    num_classes: int
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    crop_mode: str = "center"

    def build(self) -> nn.Module:
        """The network in eval mode; its weights are whatever the constructor leaves in them."""
        if self.name in PACKAGED:
            return VisionTransformer(**self.kwargs).eval()
        return timm.create_model(self.tag, pretrained=False, num_classes=self.num_classes).eval()

    def denormalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised (B, 3, H, W) to pixel values in [0, 1]."""
        mean, std = self.pixel_stats(images)
        return images * std + mean

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values in [0, 1], (B, 3, H, W), to the network's input."""
        mean, std = self.pixel_stats(pixels)
        return (pixels - mean) / std

    def pixel_stats(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation as (1, 3, 1, 1) tensors of ``like``'s dtype and device."""
        return (
            like.new_tensor(self.mean).view(1, 3, 1, 1),
            like.new_tensor(self.std).view(1, 3, 1, 1),
        )


@dataclass(frozen=True)
class LoadedModel:
    """A float network ready to be quantized. ``weights`` says where they came from, ``digest`` is their sha256."""

    module: nn.Module
    spec: ModelSpec
    weights: str
    digest: str


def describe(name: str) -> ModelSpec:
    """The spec of a short name, a packaged model or a full timm tag.

    Raises:
        IntvitError: nothing of that name; near matches are listed.
    """
    if name in PACKAGED:
        return _packaged(name)
    tag = SHORT_NAMES.get(name, name)
    if not timm.is_model(tag.split(".")[0]):
        near = difflib.get_close_matches(name, [*SHORT_NAMES, *PACKAGED], n=3, cutoff=0.3)
        near += difflib.get_close_matches(name, timm.list_models("*vit*") + timm.list_models("swin*"), n=3)
        raise IntvitError(
            f"unknown model {name!r}",
            where="--model",
            why="it is neither a short name nor a model timm knows",
            next="near matches: " + ", ".join(near) if near else "short names: " + ", ".join(SHORT_NAMES),
        )
    try:
        config = timm.get_pretrained_cfg(tag)
    except RuntimeError:  # the architecture exists, the tag after the dot does not
        config = None
    if config is None:
        raise _no_such_weights(tag)
    ids, names = _class_lists(int(config.num_classes))
    return ModelSpec(
        name=name,
        tag=tag,
        kwargs={},
        input_size=cast(tuple[int, int, int], tuple(config.input_size)),
        mean=cast(tuple[float, float, float], tuple(config.mean)),
        std=cast(tuple[float, float, float], tuple(config.std)),
        interpolation=config.interpolation,
        crop_pct=float(config.crop_pct),
        num_classes=int(config.num_classes),
        class_ids=ids,
        class_names=names,
        crop_mode=config.crop_mode,
    )


def _no_such_weights(tag: str) -> IntvitError:
    """What to say of a tag of a network that timm knows, where it knows no weights of that tag."""
    network = tag.split(".")[0]
    renamed, tags = timm.models.get_deprecated_models().get(network), timm.list_pretrained(network + ".*")[:4]
    if renamed:
        why, then = f"{network} is an old name", f"give --model {renamed}, which is timm's name for it today"
    elif tags:
        why, then = f"timm knows {network} with other weights only", "known tags: " + ", ".join(tags)
    else:
        why, then = f"no weights of {network} are published", "short names: " + ", ".join(SHORT_NAMES)
    return IntvitError(f"timm has no weights tagged {tag!r}", where="--model", why=why, next=then)


def _packaged(name: str) -> ModelSpec:
    config = json.loads(_asset(f"{name}.json").read_text("utf-8"))
    pre = config["pretrained_cfg"]
    classes = tuple(config["classes"])
    return ModelSpec(
        name=name,
        tag=name,
        kwargs=config["kwargs"],
        input_size=tuple(pre["input_size"]),
        mean=tuple(pre["mean"]),
        std=tuple(pre["std"]),
        interpolation=pre["interpolation"],
        crop_pct=float(pre["crop_pct"]),
        num_classes=len(classes),
        class_ids=classes,
        class_names=classes,
    )


def _asset(name: str) -> Path:
    return Path(str(resources.files("calib") / "assets" / name))


def _class_lists(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids and names in logit order where the count is ImageNet-1k's, else the plain indices."""
    if count != 1000:
        plain = tuple(str(index) for index in range(count))
        return plain, plain
    info = timm.data.ImageNetInfo("imagenet-1k")
    names = tuple(info.index_to_description(index) for index in range(count))
    return tuple(info.label_names()), names


def load(name: str, checkpoint: str | None = None, seed: int = 0) -> LoadedModel:
    """Build a network and give it weights: from ``checkpoint``, from the package, from timm's hub, or random.

    Args:
        name: short name, packaged model or full timm tag.
        checkpoint: a file, or ``"random"`` for seeded random weights, or None for the published ones.
        seed: of the random weights.

    Raises:
        IntvitError: unknown name, unsupported architecture, or weights that cannot be had; the message says how to
            fetch them on a machine with a network.
    """
    spec, path = describe(name), _weights_file(name, checkpoint)
    state = {} if path is None else read_state_dict(path)
    spec = with_own_classes(spec, state)  # a checkpoint's head may be the classifier that the tag has not by itself
    with torch.device("meta"):  # no memory and no time: nobody fetches weights to be told this
        require_supported(spec.build(), spec)
    if checkpoint == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = spec.build()
        return LoadedModel(module, spec, "random", f"random-{seed}")
    if path is None:
        return _from_hub(spec)
    module = spec.build()
    require_size(state, module, str(path))
    adapt: Callable[..., dict[str, Any]] = swin_filter if isinstance(module, SwinTransformer) else vit_filter
    if set(state) != set(module.state_dict()):
        state = _adapted(adapt, state, module, str(path))
    load_into(module, state, str(path))
    return LoadedModel(module.eval(), spec, "packaged" if checkpoint is None else "checkpoint", sha256_of(path))


def _weights_file(name: str, checkpoint: str | None) -> Path | None:
    """The file to read; None for random weights and for the hub's."""
    if checkpoint is None:
        return _asset(f"{name}.safetensors") if name in PACKAGED else None
    return None if checkpoint == RANDOM else Path(checkpoint).expanduser()


def with_own_classes(spec: ModelSpec, state: dict[str, Any]) -> ModelSpec:
    """The spec with the checkpoint's own number of classes, named by their index, where it is not the tag's.

    A network that was trained on for somebody's own classes has another head and is the same otherwise.
    """
    head = next((state[name] for name in ("head.weight", "head.fc.weight") if name in state), None)
    if spec.name in PACKAGED or head is None or head.ndim != 2 or len(head) in (0, spec.num_classes):
        return spec
    ids, names = _class_lists(len(head))
    return replace(spec, num_classes=len(head), class_ids=ids, class_names=names)


def require_size(state: dict[str, Any], module: nn.Module, where: str) -> None:
    """Refuse a checkpoint for another resolution, window or patch size: timm's filters would resample it in silence.

    Patches may be flat, (N, C H W), and DINOv2's positions of networks with registers have a row for the class token.

    Raises:
        IntvitError: naming the first such tensor and both shapes.
    """
    for name, mine in module.state_dict().items():
        axes = next((axes for end, axes in RESAMPLED.items() if name.endswith(end)), None)
        if axes is None:
            continue
        ends = f".{name}", f".{CLIP_NAMES.get(name, name)}"
        key = next((key for key in state if f".{key}".endswith(ends)), "")
        if not key or (name == "patch_embed.proj.weight" and state[key].ndim < 4):
            continue
        theirs = list(state[key].shape)
        if name == "pos_embed" and "register_tokens" in state and len(theirs) == 3:
            theirs[1] -= 1
        if theirs[axes] != list(mine.shape)[axes]:
            raise IntvitError(
                "the checkpoint is of another model",
                where=f"{where}: {key}",
                why=f"shape {tuple(state[key].shape)}, the model has {tuple(mine.shape)}: another resolution, window "
                "or patch size",
                next="check --model: give the timm tag of the checkpoint's own resolution, window and patch size",
            )


def _adapted(adapt: Callable[..., dict[str, Any]], state: dict[str, Any], module: nn.Module, where: str) -> Any:
    """The checkpoint under timm's present names; timm's filters assume the right model and break on any other."""
    try:
        return dict(adapt(state, module))
    except Exception as error:
        raise IntvitError(
            "the checkpoint is of another model",
            where=where,
            why=f"timm's filter for {type(module).__name__} fails on it: {reason(error)}",
            next="check --model against the checkpoint; any full timm tag can be given",
        ) from error


def _from_hub(spec: ModelSpec) -> LoadedModel:
    module = fetch(spec.tag, spec.name).eval()
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return LoadedModel(module, spec, "hub", digest.hexdigest())


def require_supported(module: nn.Module, spec: ModelSpec) -> None:
    """Refuse what is no plain ViT, DeiT or Swin as timm writes them.

    Raises:
        IntvitError: another class, or parts that the surgery cannot take: told here, before any image is synthesised.
    """
    if type(module) not in (VisionTransformer, SwinTransformer):
        raise IntvitError(
            f"{spec.name} is a {type(module).__name__}, which is not supported",
            where="--model",
            why="supported: timm's VisionTransformer (ViT, DeiT) and SwinTransformer",
            next="short names: " + ", ".join(SHORT_NAMES),
        )
    refuse_unknown_parts(module)
