"""The page: whole in itself, accessible, escaped, and plain about what was not measured."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from runtime import cli
from runtime.bundle import Bundle, entry_for, write_manifest
from runtime.files import atomic_write_json
from tests.runtime.tiny import rehash
from tests.toolchain.report.pages import Page, accuracy_record, bare_bundle, bench_record, measured_bundle
from toolchain.report import main, write_report
from toolchain.report.gather import KINDS, command


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured_bundle(tmp_path_factory.mktemp("measured") / "w8a8")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_bundle(tmp_path_factory.mktemp("bare") / "w4a8", "w4a8")


def page(out: Path, *bundles: Path) -> tuple[str, Page]:
    write_report(list(bundles), out)
    text = out.read_text("utf-8")
    return text, Page(text)


def test_the_page_needs_nothing_else(measured: Path, bare: Path, tmp_path: Path) -> None:
    for name, bundles in (("one", [measured]), ("bare", [bare]), ("two", [measured, bare])):
        text, found = page(tmp_path / f"{name}.html", *bundles)
        assert len(text.encode()) < 3_000_000
        assert all(reference.startswith(("#", "data:image/")) for reference in found.references)
        assert not re.search(r"url\((?!#)|@import", text)
        assert not {"script", "link", "iframe", "object", "embed", "form"} & set(found.tags)


def test_everybody_can_read_it(measured: Path, bare: Path, tmp_path: Path) -> None:
    text, found = page(tmp_path / "two.html", measured, bare)
    assert text.startswith('<!doctype html>\n<html lang="en">') and "width=device-width" in text
    assert len(found.ids) == len(set(found.ids))
    assert {reference[1:] for reference in found.references if reference.startswith("#")} <= set(found.ids)
    assert found.images and all(image.get("alt") for image in found.images)
    assert len({image["alt"] for image in found.images}) >= 18  # two sheets, an image, and 2 x 2 x 4 heads at least
    assert text.count("<svg") == text.count('role="img" aria-label="')
    assert found.heads and all(head.get("scope") in ("col", "row") for head in found.heads)


def test_what_was_measured_is_there(measured: Path, tmp_path: Path) -> None:
    text, found = page(tmp_path / "a.html", measured)
    said = re.sub(r"\s+", " ", found.text)
    for part in (
        "RANDOM WEIGHTS", "2.000 ms 3.000 ms 1.50× as fast", "80.00 % 82.00 % -2.00 points (s.e. 0.50)",
        "10.00 mJ 30.00 mJ 3.00× less", "100.0 %", "the same integers", "no rung parts",
        "95 % interval -3.00 to -1.00", "W8A8 is faster than FP32 here.", "other processes kept 1.4",
        "no GPU telemetry", "watts", "megahertz", "BF16 (openvino)", "data-free yes",
    ):  # fmt: skip
        assert part in said, part
    assert "not measured" not in said
    assert len(re.findall("<svg", text)) >= 3


def test_what_was_not_measured_says_what_to_type(bare: Path, tmp_path: Path) -> None:
    _, found = page(tmp_path / "a.html", bare)
    said = re.sub(r"\s+", " ", found.text)
    for kind in KINDS:
        assert command(kind, Bundle.open(bare)) in said
    assert not re.search(r"\bnan\b|None|Undefined", said)


def test_what_the_build_noted_may_have_stayed_behind(bare: Path, tmp_path: Path) -> None:
    """Only the manifest's files travel of themselves; a method that optimised is not said to have optimised nothing."""
    copy = tmp_path / "copy"
    shutil.copytree(bare, copy, ignore=shutil.ignore_patterns("reports"))
    said, whole = (re.sub(r"\s+", " ", page(tmp_path / "a.html", one)[1].text) for one in (copy, bare))
    missing = "Not noted: reports/network.json of the build is not here."
    assert said.count(missing) == 2 and missing not in whole
    assert "after the block" in whole and "after the block" not in said and "optimises nothing" not in said


def test_what_a_file_says_is_escaped(measured: Path, tmp_path: Path) -> None:
    text, found = page(tmp_path / "a.html", measured)
    assert "<script>alert(1)</script>" not in text and "<script>alert(1)</script>" in found.text


def test_several_bundles_are_compared(measured: Path, tmp_path: Path) -> None:
    other = measured_bundle(tmp_path / "w4a8", "w4a8", median=1.5, top1=79.0)
    text, found = page(tmp_path / "two.html", measured, other)
    assert "Comparison" in found.text and "Top-1 against time an image" in text
    row = next(part for part in re.sub(r"\s+", " ", found.text).split("latency, median")[1:])
    assert row.index("2.000 ms") < row.index("1.500 ms")
    for bundle in (measured, other):  # on a phone every figure stands below the other, with the bundle's name
        assert f'<td data-of="{Bundle.open(bundle).manifest.name}">' in text


def test_a_measurement_of_another_bundle_is_left_out_by_name(bare: Path, tmp_path: Path) -> None:
    copy = bare_bundle(tmp_path / "copy")
    atomic_write_json(copy / "reports/bench-old.json", bench_record() | {"bundle": Bundle.open(bare).sha256})
    _, found = page(tmp_path / "a.html", copy)
    assert "reports/bench-old.json was measured on another bundle" in found.text
    assert command("bench", Bundle.open(copy)) in found.text


def test_the_command_writes_into_the_bundle_or_where_told(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = bare_bundle(tmp_path / "copy")
    assert cli.invoke(main, [str(copy)]) == 0
    assert str(copy / "report.html") in capsys.readouterr().out
    Bundle.open(copy)
    assert cli.invoke(main, [str(copy), str(bare), "--out", str(tmp_path / "new/r.html")]) == 0
    assert (tmp_path / "new/r.html").is_file()


def test_the_page_does_not_overwrite_a_file_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = bare_bundle(tmp_path / "one"), bare_bundle(tmp_path / "other")
    assert cli.invoke(main, [str(one), str(other), "--out", str(other / "ort/model.onnx")]) == 1
    assert "would overwrite an input" in capsys.readouterr().err
    manifest = Bundle.open(one).manifest
    (one / "report.html").write_text("listed")
    write_manifest(
        one, manifest.model_copy(update={"files": [*manifest.files, entry_for(one, "report.html", "report")]})
    )
    assert cli.invoke(main, [str(one)]) == 1
    for bundle in (one, other):
        Bundle.open(bundle)


@pytest.mark.parametrize("content", ["{", "[]", '{"bundle": "%s", "backend": "ort"}'])
def test_a_malformed_measurement_is_named_and_nothing_is_written(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bare_bundle(tmp_path / "b")
    path = bundle / "reports/accuracy.json"
    path.write_text(content.replace("%s", Bundle.open(bundle).sha256))
    assert cli.invoke(main, [str(bundle)]) == 1
    assert "accuracy.json" in capsys.readouterr().err and not (bundle / "report.html").exists()


@pytest.mark.parametrize(
    "content",
    [
        '{"images": {"seconds": 1}}',
        '{"images": 3}',
        '{"images": {"seconds": "1", "peak_mib": 2}}',
        "[]",
        "{",
        '{"images": {"seconds": 1' + "0" * 400 + ', "peak_mib": 2}}',
    ],
    ids=["no peak", "a number", "a text", "a list", "cut", "huge"],
)
def test_a_damaged_cost_is_named(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bare_bundle(tmp_path / "b")
    (bundle / "cost.json").write_text(content)
    assert cli.invoke(main, [str(bundle)]) == 1
    said = capsys.readouterr().err
    assert str(bundle / "cost.json") in said and "next: remove it" in said and "reports" not in said


@pytest.mark.parametrize("name", ["cost.json", "reports/bench.json", "reports/network.json"])
def test_a_pipe_among_the_measurements_is_not_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bare_bundle(tmp_path / "b")
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)
    assert cli.invoke(main, [str(bundle)]) == 1
    said = capsys.readouterr().err
    assert str(bundle / name) in said and "a pipe" in said


@pytest.mark.parametrize("fault", ["no picture", "cut", "a bomb", "a larger bomb"])
def test_a_preview_that_cannot_be_shown_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bare_bundle(tmp_path / "b")
    file = bundle / "preview.png"
    data = file.read_bytes()
    if "bomb" in fault:
        with Image.open(file) as picture:
            pixels = picture.width * picture.height
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // (4 if "larger" in fault else 1) - 1)
    else:
        file.write_bytes(b"no picture" if fault == "no picture" else data[: len(data) // 2])
        rehash(bundle)
    assert cli.invoke(main, [str(bundle)]) == 1
    said = capsys.readouterr().err
    assert str(file) in said and "cannot read the preview" in said and "fault of intvit" not in said


def test_a_measurement_of_another_version_is_no_fault_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bare_bundle(tmp_path / "b")
    record = {"backend": "ort", "ok": True, "verdict": "", "rungs": [{"rung": "engine", "taps": []}]}
    atomic_write_json(bundle / "reports/ladder.json", record | {"bundle": Bundle.open(bundle).sha256})
    assert cli.invoke(main, [str(bundle)]) == 1
    said = capsys.readouterr().err
    assert "another form" in said and "unexpected" not in said and not (bundle / "report.html").exists()


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_in_light_and_dark(bare: Path, tmp_path: Path) -> None:
    """4.5 to 1 at least, WCAG 2 level AA, of every text colour on both backgrounds."""
    text, _ = page(tmp_path / "a.html", bare)
    schemes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for back in ("back", "card"):
            for front in ("text", "soft", "link", "good", "bad"):
                high, low = sorted((luminance(colours[back]), luminance(colours[front])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_accuracy_alone_is_shown(tmp_path: Path) -> None:
    bundle = bare_bundle(tmp_path / "b")
    atomic_write_json(bundle / "reports/accuracy.json", accuracy_record() | {"bundle": Bundle.open(bundle).sha256})
    _, found = page(tmp_path / "a.html", bundle)
    assert "80.00 %" in found.text and command("bench", Bundle.open(bundle)) in found.text
