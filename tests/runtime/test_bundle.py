"""Opening a bundle: what is right opens, what is wrong is refused by name."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from runtime.bundle import Bundle, entry_for, write_manifest
from runtime.errors import IntvitError
from runtime.files import sha256_bytes
from runtime.manifest import Manifest
from runtime.verify import safe_relative
from tests.runtime.tiny import rehash


def _edit(root: Path, **changes: object) -> None:
    """Change the manifest's raw JSON and hash it again."""
    raw = json.loads((root / "manifest.json").read_bytes())
    raw.update(changes)
    data = json.dumps(raw).encode()
    (root / "manifest.json").write_bytes(data)
    (root / "manifest.sha256").write_text(sha256_bytes(data) + "\n")


def _edit_file(root: Path, role: str, **changes: object) -> None:
    raw = json.loads((root / "manifest.json").read_bytes())
    for entry in raw["files"]:
        if entry["role"] == role:
            entry.update(changes)
    _edit(root, files=raw["files"])


def test_a_whole_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.file("graph", "ort") == tiny_bundle / "ort/model.onnx"
    assert bundle.golden().images.shape == (8, 3, 8, 8)
    assert bundle.classes().index_of("n00000003") == 3
    assert bundle.engines == ()
    with pytest.raises(IntvitError, match="no graph for tensorrt") as caught:
        bundle.file("graph", "tensorrt")
    assert "ort" in caught.value.why and caught.value.next.startswith("--backend openvino or ort; or build it again")
    assert "--target openvino,ort,tensorrt" in caught.value.next and bundle.targets == ["openvino", "ort"]
    with pytest.raises(IntvitError, match="no single file of role 'other'"):
        bundle.file("other")


def test_the_manifest_is_the_same_bytes_every_time(bundle_copy: Path) -> None:
    before = {name: (bundle_copy / name).read_bytes() for name in ("manifest.json", "manifest.sha256")}
    write_manifest(bundle_copy, Bundle.open(bundle_copy).manifest)
    assert before == {name: (bundle_copy / name).read_bytes() for name in before}
    assert before["manifest.json"].endswith(b"}\n")


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path / "nothing", "no such"), (tmp_path / "file", "a file"), (tmp_path, "no manifest.json")):
        with pytest.raises(IntvitError, match="not a bundle") as caught:
            Bundle.open(path)
        assert why in caught.value.why and "toolchain.build" in caught.value.next
    (tmp_path / "manifest.sha256").write_text("0" * 64 + "\n")
    with pytest.raises(IntvitError, match="missing") as caught:
        Bundle.open(tmp_path)
    assert "manifest.json" in caught.value.where


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:/x", "c:x", "", ".", "./a", "a//b", "a/", "a\x00b", "a\n"],
)
def test_paths_that_leave(bundle_copy: Path, path: str) -> None:
    _edit_file(bundle_copy, "preview", path=path)
    with pytest.raises(IntvitError, match="leaves the bundle"):
        Bundle.open(bundle_copy)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.c", "\\", "/", "C:"]), max_size=5).map("/".join))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    try:
        safe = safe_relative(path, where="test")
    except IntvitError:
        return
    assert os.path.normpath(os.path.join("/root/bundle", safe)) == "/root/bundle/" + path


def test_a_link_out_is_refused_and_a_link_inside_is_not(bundle_copy: Path, tmp_path: Path) -> None:
    preview = bundle_copy / "preview.png"
    preview.rename(bundle_copy / "real.png")
    preview.symlink_to("real.png")
    Bundle.open(bundle_copy)
    preview.unlink()
    outside = tmp_path / "outside.png"
    (bundle_copy / "real.png").rename(outside)
    preview.symlink_to(outside)
    with pytest.raises(IntvitError, match="leaves the bundle") as caught:
        Bundle.open(bundle_copy)
    assert "preview.png" in caught.value.where


def test_a_linked_folder_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "ort").rename(tmp_path / "elsewhere")
    (bundle_copy / "ort").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntvitError, match="leaves the bundle"):
        Bundle.open(bundle_copy)


def test_a_pipe_is_refused_and_does_not_hang(bundle_copy: Path) -> None:
    (bundle_copy / "preview.png").unlink()
    os.mkfifo(bundle_copy / "preview.png")
    with pytest.raises(IntvitError, match="regular file"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_manifest_that_is_no_file_of_a_sane_size_is_refused_and_not_read(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / name
    for make, said in (
        (lambda: os.mkfifo(path), "regular file"),
        (lambda: path.symlink_to("/dev/zero"), "regular file"),
        (lambda: path.mkdir(), "regular file"),
        (lambda: path.symlink_to(name), "cannot read a file of the bundle"),
        (lambda: (path.touch(), os.truncate(path, 65 << 20)), "too large"),
    ):
        path.rmdir() if path.is_dir() else path.unlink()
        make()
        with pytest.raises(IntvitError, match=said) as caught:
            Bundle.open(bundle_copy)
        assert caught.value.where == str(path) and caught.value.next


def test_a_file_that_is_there_and_cannot_be_read_is_not_called_missing(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = bundle_copy / "preview.png"
    preview.unlink()
    preview.symlink_to("preview.png")
    with pytest.raises(IntvitError, match="cannot read a file of the bundle") as caught:
        Bundle.open(bundle_copy)
    assert caught.value.where == str(preview) and "may be read" in caught.value.next

    def broken(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(IntvitError, match="cannot read a file of the bundle") as caught:
        Bundle.open(bundle_copy)
    assert "Input/output error" in caught.value.why and caught.value.where == str(bundle_copy / "manifest.json")


def test_listed_twice(bundle_copy: Path) -> None:
    raw = json.loads((bundle_copy / "manifest.json").read_bytes())
    twice = {**raw["files"][0], "path": raw["files"][0]["path"].upper()}
    _edit(bundle_copy, files=[*raw["files"], twice])
    with pytest.raises(IntvitError, match="listed twice"):
        Bundle.open(bundle_copy)


def test_missing_and_truncated_files_are_named(bundle_copy: Path) -> None:
    graph = bundle_copy / "ort/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(IntvitError, match="truncated") as caught:
        Bundle.open(bundle_copy)
    assert "ort/model.onnx" in caught.value.where
    graph.unlink()
    with pytest.raises(IntvitError, match="missing") as caught:
        Bundle.open(bundle_copy)
    assert "ort/model.onnx" in caught.value.where


def test_a_newer_schema_says_which_intvit(bundle_copy: Path) -> None:
    _edit(bundle_copy, schema_version=2, provenance={"intvit": "9.1"}, something_new=1)
    with pytest.raises(IntvitError, match=r"needs intvit 9\.1 or later") as caught:
        Bundle.open(bundle_copy)
    assert "pip install" in caught.value.next


@pytest.mark.parametrize("version", [0, "1", None, True])
def test_no_known_schema(bundle_copy: Path, version: object) -> None:
    _edit(bundle_copy, schema_version=version)
    with pytest.raises(IntvitError, match="schema version") as caught:
        Bundle.open(bundle_copy)
    assert "build the bundle again" in caught.value.next


def test_unknown_key_is_refused(bundle_copy: Path) -> None:
    _edit(bundle_copy, surprise=1)
    with pytest.raises(IntvitError, match="does not follow its schema") as caught:
        Bundle.open(bundle_copy)
    assert "surprise" in caught.value.why


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("preprocess", "std", [0.0, 0.5, 0.5]),
        ("preprocess", "std", [math.nan] * 3),
        ("preprocess", "mean", [1e308] * 3),
        ("preprocess", "crop_pct", 1e-7),
        ("preprocess", "height", 10**6),
        ("preprocess", "width", 0),
        ("taps", "scale", math.nan),
        ("taps", "scale", math.inf),
        ("taps", "zero_point", 10**30),
        ("taps", "qmin", -(10**9)),
        ("layers", "macs", 10**400),
        ("layers", "weight_bits", -5),
        ("", "num_classes", 0),
    ],
)
def test_numbers_that_nothing_can_be_done_with_are_refused(
    bundle_copy: Path, part: str, key: str, value: object
) -> None:
    raw = json.loads((bundle_copy / "manifest.json").read_bytes())
    place = raw[part] if part else raw
    (place[0] if isinstance(place, list) else place)[key] = value
    _edit(bundle_copy, **raw)
    with pytest.raises(IntvitError, match="does not follow its schema") as caught:
        Bundle.open(bundle_copy)
    assert key in caught.value.why


def test_the_usual_crop_is_not_written_for_older_runtimes_refuse_the_key(bundle_copy: Path) -> None:
    raw = json.loads((bundle_copy / "manifest.json").read_bytes())
    rule = Bundle.open(bundle_copy).manifest.preprocess
    assert "crop_mode" not in raw["preprocess"] and rule.crop_mode == "center"
    rehash(bundle_copy, preprocess=rule.model_copy(update={"crop_mode": "squash"}))
    assert json.loads((bundle_copy / "manifest.json").read_bytes())["preprocess"]["crop_mode"] == "squash"
    assert Bundle.open(bundle_copy).manifest.preprocess.crop_mode == "squash"


def test_manifest_that_is_no_json(bundle_copy: Path) -> None:
    (bundle_copy / "manifest.json").write_bytes(b"{")
    (bundle_copy / "manifest.sha256").write_text(sha256_bytes(b"{") + "\n")
    with pytest.raises(IntvitError, match="not JSON") as caught:
        Bundle.open(bundle_copy)
    assert "build the bundle again" in caught.value.next


def test_entry_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    entry = entry_for(tmp_path, "a", "other")
    assert (entry.bytes, entry.sha256) == (3, sha256_bytes(b"abc"))
    for path in ("../a", "missing"):
        with pytest.raises(IntvitError):
            entry_for(tmp_path, path, "other")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", np.zeros((8, 3, 9, 8), np.float32), "not what it should be"),
        ("images", np.zeros((8, 3, 8, 8), np.float64), "not what it should be"),
        ("logits", np.zeros((7, 10), np.float32), "not what it should be"),
        ("logits", np.full((8, 10), np.nan, np.float32), "not finite"),
        ("tap.head", np.zeros((8, 1, 32), np.uint8), "not what it should be"),
        ("tap.head", np.zeros((3, 1, 32), np.int8), "wrong shape"),
        ("tap.head", None, "no tensor"),
    ],
)
def test_golden_is_checked(bundle_copy: Path, name: str, value: np.ndarray | None, message: str) -> None:
    path = bundle_copy / "golden/golden.safetensors"
    tensors = {key: item.copy() for key, item in load_file(path).items()}
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path)
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match=message) as caught:
        Bundle.open(bundle_copy).golden()
    assert "golden.safetensors" in caught.value.where


def test_golden_outside_the_levels(bundle_copy: Path) -> None:
    manifest = Manifest.model_validate_json((bundle_copy / "manifest.json").read_bytes())
    rehash(bundle_copy, taps=[tap.model_copy(update={"qmax": 3}) for tap in manifest.taps])
    with pytest.raises(IntvitError, match="out of range"):
        Bundle.open(bundle_copy).golden()


def test_golden_that_is_no_safetensors(bundle_copy: Path) -> None:
    (bundle_copy / "golden/golden.safetensors").write_bytes(b"\x80\x04nonsense")
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="cannot read the golden file"):
        Bundle.open(bundle_copy).golden()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"ids": ["a"], "names": ["b"]}', json.dumps({"ids": ["a"] * 10, "names": ["b"] * 10})]
)
def test_class_list_is_checked(bundle_copy: Path, text: str) -> None:
    (bundle_copy / "classes.json").write_text(text)
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="class list"):
        Bundle.open(bundle_copy).classes()
