"""``python -m toolchain.build`` on vit_digits: the bundle it writes, twice the same, and what it refuses."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from benches.digits import picture_files
from calib import memory
from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.parity import check
from tests.conftest import REPO
from toolchain.build import main

QUICK = ["--model", "vit_digits", "--bits", "w4a8", "--iterations", "3", "--images", "8"]
QUICK += ["--budget", "fast"]
NOISE = ["--model", "vit_digits", "--bits", "w4a8", "--method", "noise", "--images", "8", "--budget", "fast"]


@dataclass(frozen=True)
class Built:
    """A bundle, the cache it came from and what the command said."""

    out: Path
    cache: Path
    said: str

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.out)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A data-free build with a real, if short, synthesis."""
    root = tmp_path_factory.mktemp("quick")
    command = [*QUICK, "--seed", "3", "--out", str(root / "out"), "--cache", str(root / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        printed = root / "said.txt"
        with printed.open("w") as stream:
            patch.setattr(sys, "stdout", stream)
            assert cli.invoke(main, command) == 0
    return Built(root / "out", root / "cache", printed.read_text())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits of the test split, four a class, as ``DIR/<class>/<sample>.png``."""
    root = tmp_path_factory.mktemp("pictures")
    kept: dict[str, int] = {}
    for name, data in picture_files("test").items():
        label = name.split("/")[0]
        kept[label] = kept.get(label, 0) + 1
        if kept[label] <= 4:
            (root / label).mkdir(exist_ok=True)
            (root / name).write_bytes(data)
    return root


def files(root: Path) -> dict[str, bytes]:
    """Every file's bytes, but for what one run took."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for name in ("cost.json", "report.html"):
        found.pop(name, None)
    return found


def build(cache: Path, out: Path, *options: str, base: list[str] = NOISE) -> int:
    return cli.invoke(main, [*base, "--cache", str(cache), "--out", str(out), *options])


def test_the_report_is_written_with_what_the_build_knows(quick: Built) -> None:
    page = (quick.out / "report.html").read_text("utf-8")
    for part in ("100.0 %", "block 1, head 1, integer", "Weighted loss terms of the synthesis", "runtime.bench"):
        assert part in page
    assert "report.html" in quick.said


def test_a_report_that_cannot_be_written_costs_no_bundle(
    quick: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(bundles: list[Path], out: Path) -> None:
        raise IntvitError("no ink", where=str(out))

    monkeypatch.setattr("toolchain.assemble.write_report", fail)
    assert build(quick.cache, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "no ink" in said and "the bundle is whole" in said
    Bundle.open(tmp_path / "out")


def test_the_bundle_holds_what_the_issue_asks_for(quick: Built) -> None:
    assert set(files(quick.out)) == {
        "manifest.json", "manifest.sha256", "classes.json", "preview.png", "golden/golden.safetensors",
        "canonical/model.onnx", "ort/model.onnx", "float/model.onnx",
        "reports/inspect.json", "reports/network.json", "reports/synthesis.json",
    }  # fmt: skip
    manifest = quick.bundle.manifest
    assert (manifest.name, manifest.model, manifest.scheme) == ("vit_digits-w4a8", "vit_digits", "w4a8")
    assert (manifest.weights, manifest.num_classes) == ("packaged", 10)
    assert (manifest.method, manifest.images, manifest.seed, manifest.data_free) == ("best", 8, 3, True)
    assert (manifest.preprocess.height, manifest.preprocess.width) == (32, 32)
    assert manifest.preprocess.mean == manifest.preprocess.std == (0.5, 0.5, 0.5)
    assert manifest.reported == {}
    assert set(manifest.provenance["stages"]) == {"images", "calibrate", "lower"}
    cost = json.loads((quick.bundle.root / "cost.json").read_text())
    assert all(
        cost[stage]["seconds"] > 0 and cost[stage]["peak_mib"] > 50 for stage in ("images", "calibrate", "lower")
    )
    assert set(cost["calibrate"]["steps_seconds"]) == {"rotate", "reparameterise", "quantize"}
    config = json.loads((REPO / "calib/assets/vit_digits.json").read_text())
    assert manifest.provenance["weights_sha256"] == config["sha256"]
    assert {"torch", "timm", "onnxruntime"} <= set(manifest.provenance["versions"])
    assert [layer.weight_bits for layer in manifest.layers] == [8] + [4] * 13
    assert len(manifest.taps) == 14
    assert all((tap.qmin, tap.qmax) == (-128, 127) for tap in manifest.taps)
    assert [tap.name for tap in manifest.taps if tap.zero_point] == [f"blocks.{i}.mlp.fc2" for i in range(3)]
    assert quick.bundle.classes().ids == tuple("0123456789")


def test_the_command_it_names_makes_the_same_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/small.py").write_text("def loss(images, attention):\n    return images.square().mean()\n")
    options = ["--bits", "W8A8", "--prior", "mine/small.py=0.5", "--correction", "diag", "--seed", "4"]
    options += ["--target", "ort,openvino"]
    assert build(tmp_path / "cache", tmp_path / "first", *options, base=QUICK) == 0
    command = Bundle.open(tmp_path / "first").manifest.provenance["command"]
    assert "mine" not in command and command in " ".join(
        re.sub(r"<[^>]+>", "", (tmp_path / "first/report.html").read_text("utf-8")).split()
    )
    monkeypatch.chdir(tmp_path / "mine")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "toolchain.build"]
    assert build(tmp_path / "cache", tmp_path / "second", base=words[3:]) == 0
    assert files(tmp_path / "second") == files(tmp_path / "first")


def test_what_the_command_says(quick: Built) -> None:
    assert "vit_digits-w4a8 -> " in quick.said
    assert "no real image read" in quick.said
    assert "RANDOM" not in quick.said
    assert "Next: python -m runtime.bench" in quick.said


def test_golden_vectors_are_of_8_synthetic_images(quick: Built) -> None:
    golden = quick.bundle.golden()
    assert golden.images.shape == (8, 3, 32, 32)
    assert golden.logits.shape == golden.float_logits.shape == (8, 10)
    assert set(golden.taps) == {tap.golden for tap in quick.bundle.manifest.taps}
    assert golden.taps["tap/blocks.1.mlp.fc2"].shape == (8, 65, 384)
    assert golden.taps["tap/head"].shape == (8, 1, 96)
    assert all(tap.dtype == np.int8 for tap in golden.taps.values())
    synthetic = np.sort(golden.images.reshape(8, -1), axis=1)
    assert np.abs(golden.images).max() <= 1.0
    assert len({row.tobytes() for row in synthetic}) == 8


def test_the_preview_is_a_picture_of_them(quick: Built) -> None:
    with Image.open(quick.out / "preview.png") as picture:
        picture.load()
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert len(set(picture.convert("L").tobytes())) > 20


def test_the_graphs_are_valid_and_parity_holds(quick: Built) -> None:
    for name in ("canonical", "ort", "float"):
        onnx.checker.check_model(str(quick.out / name / "model.onnx"), full_check=True)
    assert check(quick.bundle, threads=1).ok


def test_every_file_may_be_read_by_whoever_may_read_the_bundle(quick: Built) -> None:
    modes = {name: (quick.out / name).stat().st_mode & 0o777 for name in files(quick.out)}
    assert len(set(modes.values())) == 1, modes


def test_a_second_build_elsewhere_is_byte_identical(quick: Built, tmp_path: Path) -> None:
    assert build(tmp_path / "cache", tmp_path / "again", "--seed", "3", base=QUICK) == 0
    assert files(tmp_path / "again") == files(quick.out)


def test_another_seed_is_another_bundle(quick: Built, tmp_path: Path) -> None:
    assert build(quick.cache, tmp_path / "other", "--seed", "4", base=QUICK) == 0
    mine, other = files(quick.out), files(tmp_path / "other")
    assert mine["ort/model.onnx"] != other["ort/model.onnx"]
    assert mine["golden/golden.safetensors"] != other["golden/golden.safetensors"]
    assert mine["float/model.onnx"] == other["float/model.onnx"]


def test_the_same_command_again_reuses_every_stage(
    quick: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(quick.out)
    assert build(quick.cache, quick.out, "--seed", "3", base=QUICK) == 0
    assert capsys.readouterr().out.count(": reused ") == 3
    assert files(quick.out) == before
    assert build(quick.cache, tmp_path / "w8a8", "--seed", "3", "--bits", "w8a8", base=QUICK) == 0
    said = capsys.readouterr().out
    assert (said.count(": reused "), said.count(": made ")) == (1, 2)  # the same pictures serve every scheme


def test_what_was_measured_of_the_very_same_bundle_stays(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert build(cache, out) == 0
    (out / "reports/bench-mine.json").write_text('{"backend": "ort"}')
    assert build(cache, out) == 0
    assert (out / "reports/bench-mine.json").read_text() == '{"backend": "ort"}'
    (out / "reports/bench-mine.json").write_text("{}")
    assert build(cache, out, "--seed", "9") == 0  # another bundle under the same name
    assert not (out / "reports/bench-mine.json").exists()


def test_force_makes_every_stage_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "cache", tmp_path / "out") == 0
    before = files(tmp_path / "out")
    capsys.readouterr()
    assert build(tmp_path / "cache", tmp_path / "out", "--force") == 0
    assert capsys.readouterr().out.count(": made ") == 3
    assert files(tmp_path / "out") == before


def test_eval_writes_what_it_measured(
    quick: Built, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(quick.cache, tmp_path / "out", "--seed", "3", "--eval", str(pictures), base=QUICK) == 0
    reported = Bundle.open(tmp_path / "out").manifest.reported
    assert reported["images"] == 40
    assert reported["float_top1"] >= 90
    for key in ("fake_quant_top1", "engine_top1", "engine_top5", "agreement"):
        assert 10 < reported[key] <= 100
    assert 0 <= reported["stderr"] < 15
    assert abs(reported["engine_top1"] - reported["fake_quant_top1"]) <= 2.5  # one picture of 40
    said = capsys.readouterr().out
    assert "top-1 on 40 pictures" in said
    assert f"engine {reported['engine_top1']:.2f}" in said
    measured, plain = files(tmp_path / "out"), files(quick.out)
    changed = {name for name in plain if measured[name] != plain[name]}
    assert changed == {"manifest.json", "manifest.sha256", "reports/inspect.json"}  # which names the manifest's digest


def test_real_pictures_are_only_for_calibration(
    quick: Built, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ["--method", "real", "--calib-data", str(pictures), "--budget", "fast", "--images", "64"]
    assert build(tmp_path / "cache", tmp_path / "out", *real, base=QUICK) == 0
    bundle = Bundle.open(tmp_path / "out")
    assert (bundle.manifest.data_free, bundle.manifest.method) == (False, "real")
    assert bundle.manifest.images == len(list(pictures.rglob("*.png"))), "as many as there were, not as were asked for"
    assert "REAL IMAGES WERE READ" in capsys.readouterr().out
    shown = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(pictures.rglob("*.png"))]
    pixels = ((bundle.golden().images * 0.5 + 0.5) * 255).round().astype(int).transpose(0, 2, 3, 1)
    for picture in shown:
        assert np.abs(pixels - picture[None]).mean(axis=(1, 2, 3)).min() > 30
    with Image.open(tmp_path / "out/preview.png") as sheet:
        preview = np.asarray(sheet).astype(int)
    tile = preview[1:113, 1:113]
    for picture in shown:
        assert np.abs(tile - np.asarray(Image.fromarray(picture).resize((112, 112)))).mean() > 15
    # ... and the calibration did see them
    assert files(tmp_path / "out")["ort/model.onnx"] != files(quick.out)["ort/model.onnx"]


@pytest.mark.parametrize("options", [["--method", "real"], ["--calib-data", "."], [*NOISE[4:6], "--calib-data", "."]])
def test_real_pictures_must_be_asked_for_twice(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path / "cache", tmp_path / "out", *options, base=QUICK) == 1
    assert "--calib-data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_said_in_capitals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "cache", tmp_path / "out", "--checkpoint", "random") == 0
    assert "RANDOM WEIGHTS" in capsys.readouterr().out
    assert Bundle.open(tmp_path / "out").manifest.weights == "random"


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ([], ["ort"]),
        (["--target", "openvino"], ["openvino"]),
        (["--target", "ort,openvino"], ["openvino", "ort"]),
        (["--target", "ort", "--target", "openvino"], ["openvino", "ort"]),
    ],
)
def test_targets(
    options: list[str],
    targets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "it's out"
    assert build(tmp_path / "cache", out, *options, base=NOISE) == 0
    assert Bundle.open(out).targets == targets
    typed = "" if "ort" in targets else " --backend openvino"  # the default is ort
    bench = f"python -m runtime.bench {shlex.quote(str(out))}{typed}"
    assert f"Next: {bench}\n" in capsys.readouterr().out
    page = html.unescape(re.sub(r"<[^>]+>", "", (out / "report.html").read_text("utf-8")))
    assert f"{bench} --json" in page


ERRORS: list[tuple[list[str], list[str]]] = [
    (["--model", "deit_q"], ["unknown model 'deit_q'", "deit_s"]),
    (["--model", "vit_digit"], ["unknown model", "vit_digits"]),
    (["--bits", "w4b8"], ["unknown scheme 'w4b8'", "w4a8"]),
    (["--bits", "w9a8"], ["unknown scheme", "2 to 8"]),
    (["--bits", "w4a16+int"], ["+int", "w4a8+int"]),
    (["--bits", "w8a8+int", "--target", "ort,openvino"], ["openvino cannot run w8a8+int", "--target ort"]),
    (["--bits", "w4a8+g32"], ["+g32 cannot be built with 8-bit activations", "integer sum", "w4a16+g32"]),
    (["--bits", "w4a16+g64"], ["groups of 64 do not divide the 96 input channels of blocks.0", "fit: +g16, +g32"]),
    (["--bits", "w4a16+g32", "--target", "tensorrt"], ["tensorrt cannot run w4a16+g32", "64 or 128", "w4a16+g64"]),
    (["--method", "psaqq"], ["unknown method 'psaqq'", "near matches: psaq"]),
    (["--target", "ort", "--target", "orrt"], ["unknown target 'orrt'", "known: ort"]),
    (["--target", "openvino,orrt"], ["unknown target 'orrt'", "known: ort, openvino"]),
    (["--device", "tpu"], ["unknown device 'tpu'", "auto, cpu or cuda"]),
    (["--checkpoint", "no/such.safetensors"], ["no such checkpoint", "no/such.safetensors"]),
    (["--eval", "no/such/folder"], ["no/such/folder"]),
]


@pytest.mark.parametrize(("options", "said"), ERRORS, ids=[" ".join(options) for options, _ in ERRORS])
def test_a_wrong_option_is_one_readable_error_and_nothing_is_written(
    options: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path / "cache", tmp_path / "out", *options) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err + printed.out
    for text in said:
        assert text in printed.err
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_cuda(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build(tmp_path / "cache", tmp_path / "out", "--device", "cuda") == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_more_images_than_the_memory_holds_are_refused_before_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "physical_memory", lambda: 7 * 4 * 3 * 32 * 32)
    assert build(tmp_path / "cache", tmp_path / "out") == 1
    assert "7 at the very most" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [["--images", "0"], ["--images", "1000000000"], ["--iterations", "0"], ["--no-such-option"], ["--seed", "x"]],
)
def test_a_wrong_command_line_is_exit_code_2(options: list[str], tmp_path: Path) -> None:
    assert build(tmp_path / "cache", tmp_path / "out", *options) == 2
    assert list(tmp_path.iterdir()) == []


def in_the_way_file(out: Path) -> None:
    out.write_text("mine")


def in_the_way_folder(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def in_the_way_bundle(out: Path) -> None:
    assert build(out.parent / "cache", out, "--bits", "w8a8") == 0


def in_the_way_damaged(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    (out / "manifest.sha256").write_text("0" * 64)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("put", [in_the_way_file, in_the_way_folder])
def test_foreign_files_at_out_are_never_touched(
    put: Callable[[Path], None], force: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    put(out)
    before = files(tmp_path)
    assert build(tmp_path / "cache", out, *(["--force"] if force else [])) == 1
    assert "no bundle" in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.mark.parametrize("put", [in_the_way_bundle, in_the_way_damaged])
def test_another_bundle_at_out_is_replaced_with_force_only(
    put: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    put(out)
    before = files(out)
    assert build(tmp_path / "cache", out) == 1
    assert "--force" in capsys.readouterr().err
    assert files(out) == before
    assert build(tmp_path / "cache", out, "--force") == 0
    assert Bundle.open(out).manifest.scheme == "w4a8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


def test_an_empty_folder_at_out_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert build(tmp_path / "cache", tmp_path / "out") == 0
    assert Bundle.open(tmp_path / "out").manifest.scheme == "w4a8"


def test_without_out_the_bundle_goes_to_build(quick: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(main, [*QUICK, "--seed", "3", "--cache", str(quick.cache)]) == 0
    assert files(tmp_path / "build/vit_digits-w4a8") == files(quick.out)


# Runs the command line and prints every picture that was opened for reading and every folder that was listed.
WATCHED = """
import os, sys
seen = []
def watch(event, arguments):
    if not arguments or not isinstance(arguments[0], (str, bytes)):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        seen.append(os.fsdecode(arguments[0]))
    elif event in ("os.scandir", "os.listdir"):
        seen.append(os.fsdecode(arguments[0]) + "/")
sys.addaudithook(watch)
from runtime import cli
from toolchain.build import main
code = cli.invoke(main, sys.argv[1:])
for name in seen:
    print("SEEN", os.path.abspath(name) + "/" * name.endswith("/"))
sys.exit(code)
"""


def watched(folder: Path, *options: str) -> list[str]:
    """Paths that a build in ``folder`` read or listed."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, "-c", WATCHED, *QUICK, "--cache", "cache", "--out", "out", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("SEEN ") for line in done.stdout.splitlines() if line.startswith("SEEN ")]


def test_a_data_free_build_opens_no_picture(pictures: Path, tmp_path: Path) -> None:
    for name in ("photographs", "digits", "calib", "data"):
        shutil.copytree(pictures, tmp_path / name)
    seen = watched(tmp_path)
    assert any("/cache/" in name for name in seen)  # the hook works
    ours = tuple(str(tmp_path / name) for name in ("cache", "out", ".out"))
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    assert [name for name in seen if name.lower().endswith(suffixes) and not name.startswith(ours)] == []
    for name in ("photographs", "digits", "calib", "data"):
        assert not [path for path in seen if path.startswith(str(tmp_path / name))]
    assert Bundle.open(tmp_path / "out").manifest.data_free


def test_the_watch_sees_the_pictures_of_a_real_calibration(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "digits")
    seen = watched(tmp_path, "--method", "real", "--calib-data", "digits", "--budget", "fast")
    assert len([name for name in seen if name.startswith(str(tmp_path / "digits")) and name.endswith(".png")]) >= 8
    assert not Bundle.open(tmp_path / "out").manifest.data_free
