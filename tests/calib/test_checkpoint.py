"""Checkpoints: plain tensors are read, everything else is refused, and nothing in a file is ever run."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from calib.checkpoint import WRAPPERS, load_into, read_state_dict, sha256_of
from calib.errors import IntvitError
from tests.calib.networks import complete

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.tensor([1.0, -2.0, 0.5])}


def same(state: dict[str, Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


def refusal(path: Path) -> IntvitError:
    with pytest.raises(IntvitError) as caught:
        read_state_dict(path)
    error = complete(caught.value)
    assert str(path) in error.where
    return error


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    return path


def test_safetensors_are_read(safe: Path) -> None:
    assert same(read_state_dict(safe))
    assert sha256_of(safe) == hashlib.sha256(safe.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_plain_torch_files_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(path))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrappers_and_the_prefix_of_data_parallel_are_taken_off(tmp_path: Path, wrapper: str, prefix: str) -> None:
    path = tmp_path / "model.pth"
    torch.save({wrapper: {prefix + name: tensor for name, tensor in STATE.items()}, "epoch": 3}, path)
    assert same(read_state_dict(path))


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("plain", ["model", "state_dict"])
def test_averaged_weights_are_taken_before_the_others_as_timm_takes_them(
    tmp_path: Path, averaged: str, plain: str
) -> None:
    path = tmp_path / "model.pth"
    torch.save({plain: {name: tensor + 1 for name, tensor in STATE.items()}, averaged: STATE}, path)
    assert same(read_state_dict(path)) and same(load_state_dict(str(path)))


def test_the_mean_of_several_states_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "averaged.pth"
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{name}": tensor for name, tensor in STATE.items()}}
    torch.save({"model": {name: 0 * tensor for name, tensor in STATE.items()}, "model_ema": averaged}, path)
    read = read_state_dict(path)
    assert read.keys() == STATE.keys() and all(torch.equal(read[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("averaged", [{}, {"module": STATE, "decay": 0.99}, None])
def test_a_mean_that_holds_no_tensors_is_passed_over(tmp_path: Path, averaged: Any) -> None:
    path = tmp_path / "training.pth"
    torch.save({"model": STATE, "model_ema": averaged}, path)
    assert read_state_dict(path).keys() == STATE.keys()


def test_prefix_in_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, path)
    assert same(read_state_dict(path))


def test_missing_file(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "none.safetensors").what
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert "folder" in refusal(folder).why


@pytest.mark.parametrize("name", ["model.bin", "model.onnx", "model", "model.safetensors.part"])
def test_other_suffixes_are_refused_whatever_is_inside(tmp_path: Path, safe: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(safe.read_bytes())
    error = refusal(path)
    assert ".safetensors" in error.what
    assert (path.suffix or "no suffix") in error.why


def test_a_file_that_may_not_be_read_is_not_called_damaged(safe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: object) -> None:  # root may read everything, so nothing can be taken away
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)
    error = refusal(safe)
    assert "cannot be opened" in error.what and error.why == "Permission denied" and "permissions" in error.next


@pytest.mark.parametrize("keep", [0, 3, 8, 20, -1])
def test_truncated_safetensors(safe: Path, keep: int) -> None:
    raw = safe.read_bytes()
    safe.write_bytes(raw[:keep])
    assert "truncated or altered" in refusal(safe).next


@pytest.mark.parametrize("position", [0, 5, 7, 8, 12])
def test_flipped_header_of_safetensors(safe: Path, position: int) -> None:
    raw = bytearray(safe.read_bytes())
    raw[position] ^= 0xFF
    safe.write_bytes(raw)
    assert "not a readable safetensors file" in refusal(safe).what


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_torch_files_never_end_in_another_exception(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    raw, drawn, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        spoiled = bytearray(raw)
        for _ in range(3):
            spoiled[drawn.randrange(min(len(raw), 600))] = drawn.randrange(256)
        path.write_bytes(spoiled[: drawn.choice([len(raw), drawn.randrange(len(raw))])])
        try:
            read_state_dict(path)
        except IntvitError as error:
            complete(error)
            refused += 1
    assert refused > 75
    path.write_bytes(b"")
    refusal(path)


class Planted:
    """What an attacker's pickle does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle", "beside-tensors"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, suffix: str, how: str) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / f"model{suffix}"
    planted = Planted(mark)
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": planted}))
    else:
        payload = {"model": STATE, "extra": planted} if how == "beside-tensors" else planted
        torch.save(payload, path, _use_new_zipfile_serialization=how != "torch-legacy")
    error = refusal(path)
    assert not mark.exists()
    assert "more than plain tensors" in error.what
    if how != "pickle":  # the file is live: opened carelessly, it does run
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "model.safetensors"
    torch.save(Planted(mark), path)
    refusal(path)
    assert not mark.exists()


def test_a_truncated_file_of_torch_is_called_damaged_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])
    error = refusal(path)
    assert error.what == "the checkpoint is damaged" and "copy or download it again" in error.next
    assert len(error.why) < 150 and not error.why.endswith(".")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    error = refusal(path)
    assert "TorchScript" in error.what and "damaged" not in str(error) and "state_dict()" in error.next
    path.write_bytes(path.read_bytes()[:-200])
    assert "damaged" in refusal(path).what


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_pickled_module_is_refused(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "model.pth"
    module = nn.Linear(2, 2)
    torch.save({"model": module} if wrapped else module, path)
    error = refusal(path)
    assert "more than plain tensors" in error.what
    assert "Linear" in error.why


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        [STATE],
        STATE["weight"],
        {"epoch": 3},
        {"model": {"weight": 1.0}},
        {0: STATE["weight"]},
        "text",
    ],
    ids=str,
)
def test_other_contents_are_not_a_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    assert "not a mapping of names to tensors" in refusal(path).what


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"teacher": STATE, "student": STATE}, "found 'teacher' (dict), 'student' (dict)"),
        ({"model": {"state_dict": STATE}}, "found 'state_dict' (dict) under 'model'"),
        ({f"part{i}": i for i in range(9)}, "'part3' (int), ..."),
        ({}, "found nothing"),
        ([STATE], "found list"),
    ],
)
def test_what_was_found_instead_of_tensors_is_told(tmp_path: Path, content: object, why: str) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    assert why in refusal(path).why


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (STATE["weight"].to("meta"), "without values"),
        (STATE["weight"].to_sparse(), "sparse_coo"),
    ],
    ids=["meta", "sparse"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_without_values_of_their_own_are_refused_by_name(tmp_path: Path, weight: Tensor, why: str) -> None:
    path = tmp_path / "model.pth"
    torch.save({**STATE, "weight": weight}, path)
    error = refusal(path)
    assert error.where.endswith(": weight") and why in error.why


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(4, 3)


def spoiled(layer: nn.Linear, **changes: Tensor | None) -> IntvitError:
    state = {name: tensor for name, tensor in {**STATE, **changes}.items() if tensor is not None}
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(IntvitError) as caught:
        load_into(layer, state, "a.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    error = complete(caught.value)
    assert error.where.startswith("a.safetensors")
    return error


def test_loaded_exactly(layer: nn.Linear) -> None:
    load_into(layer, STATE, "a.safetensors")
    assert same(layer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_taken(layer: nn.Linear, dtype: torch.dtype) -> None:
    load_into(layer, {name: tensor.to(dtype) for name, tensor in STATE.items()}, "a.safetensors")
    assert same(layer.state_dict())
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(layer: nn.Linear, value: float) -> None:
    weight = STATE["weight"].clone()
    weight[2, 3] = value
    error = spoiled(layer, weight=weight)
    assert "not finite" in error.what
    assert "weight" in error.where


def test_missing_and_unexpected_names(layer: nn.Linear) -> None:
    error = spoiled(layer, bias=None, beta=torch.zeros(3))
    assert error.why == "1 tensors missing: bias; 1 tensors unexpected: beta"


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"bias": None}, "1 tensors missing: bias"), ({"beta": STATE["bias"]}, "1 tensors unexpected: beta")],
)
def test_one_name_too_few_or_too_many(layer: nn.Linear, changes: dict, why: str) -> None:
    error = spoiled(layer, **changes)
    assert why == error.why and "another model" in error.what


def test_wrong_shapes(layer: nn.Linear) -> None:
    error = spoiled(layer, weight=torch.zeros(4, 3))
    assert "weight" in error.where
    assert "(4, 3)" in error.why and "(3, 4)" in error.why


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_not_floats(layer: nn.Linear, dtype: torch.dtype) -> None:
    error = spoiled(layer, weight=STATE["weight"].to(dtype))
    assert str(dtype).removeprefix("torch.") in error.why
