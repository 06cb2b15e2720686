"""Names, specs, weights: what can be asked for, what comes back, and what to do when it cannot be had."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from calib import hub, models
from calib.checkpoint import sha256_of
from calib.errors import IntvitError
from calib.given import SHORT_NAMES
from calib.models import LoadedModel, describe, load, require_size, require_supported
from tests.calib.networks import complete, pictures, tiny_swin, tiny_vit

TAGS = {
    "deit_t": "deit_tiny_patch16_224.fb_in1k",
    "deit_s": "deit_small_patch16_224.fb_in1k",
    "deit_b": "deit_base_patch16_224.fb_in1k",
    "vit_t": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_b": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def refusal(name: str, *args: object) -> IntvitError:
    with pytest.raises(IntvitError) as caught:
        load(name, *args)
    return caught.value


@pytest.mark.parametrize(("name", "tag"), TAGS.items())
def test_short_names(name: str, tag: str) -> None:
    spec = describe(name)
    assert (spec.name, spec.tag, spec.input_size, spec.num_classes) == (name, tag, (3, 224, 224), 1000)


def test_swin_b_is_a_base_swin_with_imagenet_classes() -> None:
    spec = describe("swin_b")
    assert spec.tag.startswith("swin_base_patch4_window7_224.") and spec.num_classes == 1000
    assert SHORT_NAMES.keys() == {*TAGS, "swin_b"}


@pytest.mark.parametrize(
    ("name", "stats", "crop"),
    [("vit_t", ((0.5,) * 3, (0.5,) * 3), 0.9), ("deit_t", IMAGENET, 0.9), ("swin_t", IMAGENET, 0.9)],
)
def test_preprocessing_is_the_published_one(name: str, stats: tuple, crop: float) -> None:
    spec = describe(name)
    assert ((spec.mean, spec.std), spec.crop_pct, spec.interpolation) == (stats, crop, "bicubic")


def test_a_tag_that_squashes_its_pictures_says_so() -> None:
    assert describe("vit_t").crop_mode == "center"
    spec = describe("vit_base_patch16_clip_384.openai_ft_in12k_in1k")
    assert (spec.crop_mode, spec.crop_pct) == ("squash", 0.95)


def test_imagenet_classes_are_wordnet_ids_in_logit_order() -> None:
    spec = describe("deit_t")
    assert len(spec.class_ids) == len(set(spec.class_ids)) == len(spec.class_names) == 1000
    assert spec.class_ids[0] == "n01440764" and spec.class_ids[999] == "n15075141"
    assert list(spec.class_ids) == sorted(spec.class_ids)
    assert "tench" in spec.class_names[0]


def test_other_class_counts_are_plain_indices() -> None:
    spec = describe("vit_tiny_patch16_224.augreg_in21k")
    assert spec.class_ids[:2] == ("0", "1") and len(spec.class_ids) == spec.num_classes == 21843


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        ("vit_digts", "vit_digits"),
        ("deit_x", "deit_t"),
        ("swin-t", "swin_t"),
        ("vit_tiny_patch16_225", "vit_tiny_patch16_224"),
    ],
)
def test_a_typo_lists_near_matches(typo: str, near: str) -> None:
    with pytest.raises(IntvitError, match="unknown model") as caught:
        describe(typo)
    error = complete(caught.value)
    assert error.next.startswith("near matches: ")
    assert near in error.next


@pytest.mark.parametrize("name", ["", "../x", "hf-hub:timm/x", "vit_t.foo", "VIT_T"])
def test_strange_names_are_refused(name: str) -> None:
    with pytest.raises(IntvitError, match="unknown model"):
        describe(name)


def test_an_unknown_tag_of_a_known_network_lists_its_tags() -> None:
    with pytest.raises(IntvitError, match="no weights tagged") as caught:
        describe("vit_tiny_patch16_224.nope")
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k" in complete(caught.value).next


def test_a_network_without_published_weights_points_to_the_short_names() -> None:
    with pytest.raises(IntvitError, match="no weights tagged") as caught:
        describe("vit_base_patch16_18x2_224.nope")
    assert "deit_t" in complete(caught.value).next


@pytest.mark.parametrize("old", ["vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224_in21k.nope"])
def test_a_name_that_timm_has_given_up_points_to_the_one_of_today(old: str) -> None:
    with pytest.raises(IntvitError, match="no weights tagged") as caught:
        describe(old)
    error = complete(caught.value)
    assert "old name" in error.why and "--model vit_tiny_patch16_224.augreg_in21k," in error.next


def test_unsupported_class() -> None:
    error = complete(refusal("resnet18", "random"))
    assert "ResNet" in error.what
    assert "VisionTransformer" in error.why and "SwinTransformer" in error.why


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k", "patch_embed is HybridEmbed"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", None),
    ],
)
def test_parts_that_cannot_be_lowered_are_told_before_anything_is_made(name: str, part: str | None) -> None:
    if part is None:
        assert type(load(name, "random").module) is VisionTransformer
    else:
        assert part in complete(refusal(name, "random")).where


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_224.mae"])
@pytest.mark.parametrize("checkpoint", [None, "random"])
def test_weights_without_a_classifier_are_refused_for_that(name: str, checkpoint: str | None) -> None:
    error = complete(refusal(name, checkpoint))
    assert error.what == "this network has no classifier"
    assert "--checkpoint" in error.next and "head.weight and head.bias" in error.next


def test_an_unsupported_network_is_refused_before_its_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(IntvitError, match="is a ResNet"):
        load("resnet18")


def test_subclasses_are_not_taken_for_what_they_extend(digits: LoadedModel) -> None:
    class Other(VisionTransformer):
        pass

    with pytest.raises(IntvitError, match="Other"):
        require_supported(Other(**digits.spec.kwargs), digits.spec)


def state_bytes(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", ["vit_digits", "deit_t"])
def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load(name, "random", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = load(name, "random", seed=3)
    assert state_bytes(first.module) == state_bytes(second.module)
    assert state_bytes(first.module) != state_bytes(load(name, "random", seed=4).module)
    assert (first.weights, first.digest) == ("random", "random-3")
    assert not first.module.training


def test_swin_is_a_supported_class() -> None:
    loaded = load("swin_t", "random")
    assert type(loaded.module) is SwinTransformer


def test_the_packaged_model_loads(digits: LoadedModel) -> None:
    assets = Path(models.__file__).parent / "assets"
    config = json.loads((assets / "vit_digits.json").read_text("utf-8"))
    assert digits.weights == "packaged" and not digits.module.training
    assert digits.digest == config["sha256"] == sha256_of(assets / "vit_digits.safetensors")
    assert digits.spec.input_size == (3, 32, 32) and digits.spec.class_ids == tuple("0123456789")
    stored = load_file(assets / "vit_digits.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in digits.module.state_dict().items())
    assert digits.module(pictures(2, 32)).shape == (2, 10)


def test_a_checkpoint_gives_the_same_network(tmp_path: Path, digits: LoadedModel) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in digits.module.state_dict().items()}, path)
    loaded = load("vit_digits", str(path))
    assert state_bytes(loaded.module) == state_bytes(digits.module)
    assert (loaded.weights, loaded.digest) == ("checkpoint", sha256_of(path))


@pytest.mark.parametrize(("name", "head"), [("vit_t", "head"), ("swin_t", "head.fc")])
def test_a_checkpoint_with_classes_of_its_own(tmp_path: Path, name: str, head: str) -> None:
    """The head says how many there are; they are named by their index."""
    trained = load(name, "random").module
    state = dict(trained.state_dict())
    state[f"{head}.weight"], state[f"{head}.bias"] = torch.randn(5, state[f"{head}.weight"].shape[1]), torch.zeros(5)
    save_file(state, tmp_path / "mine.safetensors")
    loaded = load(name, str(tmp_path / "mine.safetensors"))
    assert (loaded.spec.num_classes, loaded.spec.class_ids) == (5, tuple("01234"))
    assert loaded.module(pictures(1, 224)).shape == (1, 5)
    assert torch.equal(loaded.module.get_submodule(head).weight, state[f"{head}.weight"])
    assert loaded.spec.build().get_submodule(head).weight.shape[0] == 5


def test_old_names_are_brought_up_to_date(tmp_path: Path) -> None:
    """DeiT's and Swin's own releases carry names and buffers that timm has since changed."""
    fresh = load("swin_t", "random").module
    state = dict(fresh.state_dict())
    state["head.weight"], state["head.bias"] = state.pop("head.fc.weight"), state.pop("head.fc.bias")
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    for i in (1, 2, 3):
        for part in ("norm.weight", "norm.bias", "reduction.weight"):
            state[f"layers.{i - 1}.downsample.{part}"] = state.pop(f"layers.{i}.downsample.{part}")
    path = tmp_path / "swin.pth"
    torch.save({"model": state}, path)
    assert state_bytes(load("swin_t", str(path)).module) == state_bytes(fresh)


def test_the_layer_scale_of_deit_iii_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its own releases have gamma_1 and gamma_2 in each block, and a wrapper."""
    name = "deit3_small_patch16_224.fb_in1k"
    fresh = load(name, "random").module
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for key, t in fresh.state_dict().items()
    }
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    assert state_bytes(load(name, str(tmp_path / "deit3.pth")).module) == state_bytes(fresh)


def test_a_plain_checkpoint_with_a_name_too_many_goes_through_the_filter_unchanged(tmp_path: Path) -> None:
    fresh = load("vit_t", "random").module
    state = dict(fresh.state_dict()) | {"pre_logits.fc.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "vit.pth")
    assert state_bytes(load("vit_t", str(tmp_path / "vit.pth")).module) == state_bytes(fresh)


def test_the_positions_of_dinov2_with_registers_are_brought_up_to_date(tmp_path: Path) -> None:
    """Its own releases have a position for the class token, which timm adds to the token."""
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    trained = timm.create_model(name.split(".")[0], num_classes=3)
    state = dict(trained.state_dict()) | {"mask_token": torch.zeros(1, 384)}
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
    save_file(state, tmp_path / "dino.safetensors")
    assert state_bytes(load(name, str(tmp_path / "dino.safetensors")).module) == state_bytes(trained)


SHAPES: list[tuple[Any, dict[str, tuple[int, ...]], str]] = [  # tiny_vit has 17 positions, tiny_swin windows of 7 x 7
    (tiny_vit, {"pos_embed": (1, 65, 32)}, "pos_embed"),
    (tiny_vit, {"visual.trunk.pos_embed": (1, 65, 32)}, "visual.trunk.pos_embed"),
    (tiny_vit, {"visual.positional_embedding": (65, 32)}, "visual.positional_embedding"),
    (tiny_vit, {"visual.conv1.weight": (32, 3, 16, 16)}, "visual.conv1.weight"),
    (tiny_vit, {"pos_embed": (1, 17, 32), "patch_embed.proj.weight": (32, 3, 4, 4)}, "patch_embed.proj.weight"),
    (tiny_swin, {"layers.1.blocks.0.attn.relative_position_bias_table": (529, 4)},
     "layers.1.blocks.0.attn.relative_position_bias_table"),
    (tiny_vit, {"positional_embedding": (77, 32), "visual.positional_embedding": (17, 32)}, ""),
    (tiny_vit, {"pos_embed": (1, 17, 32), "patch_embed.proj.weight": (32, 192), "decoder_pos_embed": (1, 9, 9)}, ""),
    (tiny_swin, {"layers.1.blocks.0.attn.relative_position_bias_table": (169, 4)}, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "shapes", "refused"), SHAPES, ids=[f"{n}-{refused}" for n, (_, _, refused) in enumerate(SHAPES)]
)
def test_what_timm_would_resample_is_refused(network: Any, shapes: dict[str, tuple[int, ...]], refused: str) -> None:
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if not refused:
        require_size(state, network(), "a.pth")
        return
    with pytest.raises(IntvitError, match="another model") as caught:
        require_size(state, network(), "a.pth")
    error = complete(caught.value)
    assert error.where == f"a.pth: {refused}" and f"shape {shapes[refused]}, the model has (" in error.why
    assert "the timm tag of the checkpoint's own resolution" in error.next


@pytest.mark.parametrize("names", ["timm's", "others"])
@pytest.mark.parametrize(
    ("model", "other", "old"),
    [
        (
            "deit3_small_patch16_224.fb_in1k",
            "deit3_small_patch16_384",
            {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"},
        ),
        ("swin_t", "swin_tiny_patch4_window7_224", {"head.fc": "head"}),
    ],
    ids=["resolution", "window"],
)
def test_a_checkpoint_of_another_size_is_refused_whatever_its_names(
    tmp_path: Path, model: str, other: str, old: dict[str, str], names: str
) -> None:
    sizes = {"img_size": 384, "window_size": 12} if other.startswith("swin") else {}
    state = timm.create_model(other, **sizes).state_dict()
    for now, before in old.items() if names == "others" else ():
        state = {name.replace(now, before): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "other.pth")
    error = complete(refusal(model, str(tmp_path / "other.pth")))
    assert error.what == "the checkpoint is of another model" and "resolution" in error.next


@pytest.mark.parametrize("classes", [10, 0])
def test_a_network_without_a_classifier_takes_that_of_its_checkpoint(tmp_path: Path, classes: int) -> None:
    """A checkpoint that has none either is refused as the network is."""
    name = "vit_small_patch16_224.dino"
    trained = timm.create_model(name.split(".")[0], num_classes=classes)
    path = tmp_path / "mine.safetensors"
    save_file(trained.state_dict(), path)
    if not classes:
        assert complete(refusal(name, str(path))).what == "this network has no classifier"
        return
    loaded = load(name, str(path))
    assert (loaded.spec.num_classes, loaded.spec.class_ids) == (10, tuple("0123456789"))
    assert state_bytes(loaded.module) == state_bytes(trained)


@pytest.mark.parametrize("name", ["vit_digits", "vit_t", "swin_t"])
@pytest.mark.parametrize(
    "state",
    [
        {"other": torch.zeros(2)},
        {"patch_embed.proj.weight": torch.zeros(3), "norm.weight": torch.zeros(1)},
        {"head.weight": torch.zeros(1), "layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(3, 3)},
    ],
    ids=["nothing in common", "odd patch embedding", "odd position bias"],
)
def test_checkpoints_of_another_model_are_refused(tmp_path: Path, name: str, state: dict) -> None:
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    error = complete(refusal(name, str(path)))
    assert "another model" in error.what and str(path) in error.where


def test_digits_weights_do_not_fit_another_network() -> None:
    path = Path(models.__file__).parent / "assets" / "vit_digits.safetensors"
    assert "another model" in refusal("vit_t", str(path)).what


def fetching(monkeypatch: pytest.MonkeyPatch, result: Exception | Callable[[], nn.Module]) -> list[bool]:
    """Have timm's fetching of weights end so; the list fills with whether the hub library was offline meanwhile."""
    seen, build = [], timm.create_model

    def create_model(*args: Any, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if not pretrained:
            return build(*args, **kwargs)
        seen.append(hub.constants.HF_HUB_OFFLINE)
        if isinstance(result, Exception):
            raise result
        return result()

    monkeypatch.setattr(timm, "create_model", create_model)
    return seen


def test_without_the_weights_the_way_round_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fetching(monkeypatch, OSError("We couldn't connect to 'https://huggingface.co'\nand more lines"))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    error = complete(refusal("deit_s"))
    assert "could not be fetched" in error.what
    assert "deit_small_patch16_224.fb_in1k" in error.where
    assert error.why == "OSError: We couldn't connect to 'https://huggingface.co'"
    for part in (
        "hf download timm/deit_small_patch16_224.fb_in1k",
        "--checkpoint model.safetensors",
        "--checkpoint random",
    ):
        assert part in error.next


@pytest.mark.parametrize(
    ("tag", "repository"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", "timm/vit_base_patch16_clip_224.openai"),
        ("vit_base_patch16_224", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("vit_base_mci_224.apple_mclip", "apple/mobileclip_b_timm"),
    ],
)
def test_the_repository_told_is_the_one_timm_asks(monkeypatch: pytest.MonkeyPatch, tag: str, repository: str) -> None:
    fetching(monkeypatch, OSError("no"))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    with pytest.raises(IntvitError) as caught:
        hub.fetch(tag, tag)
    assert caught.value.where.endswith(f"/{repository}") and f"hf download {repository} " in caught.value.next


def test_without_a_network_the_hub_library_is_told_not_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fetching(monkeypatch, OSError("not cached"))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    error = complete(refusal("deit_s"))
    assert "no network" in error.why and "--checkpoint model.safetensors" in error.next
    assert seen == [True] and hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("proxy", [None, "http://proxy:3128"])
def test_a_name_that_does_not_resolve_is_no_network_except_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: str | None
) -> None:
    def unknown(*args: object) -> None:
        raise socket.gaierror("name or service not known")

    monkeypatch.setattr(hub.socket, "getaddrinfo", unknown)
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("https_proxy", proxy)
    assert hub.reachable() is bool(proxy)


def test_hub_weights_have_a_digest_of_their_values(monkeypatch: pytest.MonkeyPatch, digits: LoadedModel) -> None:
    fetching(monkeypatch, lambda: VisionTransformer(**digits.spec.kwargs))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    torch.manual_seed(0)
    first = load("deit_t")
    torch.manual_seed(0)
    second = load("deit_t")
    assert first.weights == "hub" and not first.module.training
    assert first.digest == second.digest != load("deit_t").digest


def test_pixels_and_network_input_are_each_others_inverse() -> None:
    spec = describe("deit_t")
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.allclose(spec.denormalise(spec.normalise(pixels)), pixels, atol=1e-6)
    black = spec.normalise(torch.zeros(1, 3, 1, 1)).flatten().tolist()
    assert black == pytest.approx([-m / s for m, s in zip(*IMAGENET, strict=True)])
