"""Every other command in README.md and docs/ is run, on the packaged model in place of those that must be fetched.

docs/first-hour.md has a test of its own, which changes nothing in its commands.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benches.digits import picture_files
from runtime import cli
from tests.conftest import REPO
from tests.docs.test_readme import FOUND, OTHERS

SHORT = {
    "toolchain.build": ["--images", "8", "--budget", "fast", "--iterations", "2"],
    "calib.synthesize": ["--images", "8", "--iterations", "2", "--force"],
    "runtime.bench": ["--seconds", "0.2"],
}
SAME = {"deit_s": "vit_digits", "vit_t": "vit_digits", "BUNDLE": "build/vit_digits-w8a8"}
NOT_HERE = {  # first words of what cannot run in a test, and why
    "benches.": "measures for hours",
    "pip": "changes the environment",
}


def wanted() -> Iterator[tuple[str, ...]]:
    """The commands in the order of the pages, each once, in their substituted form."""
    seen = set()
    for page, words in FOUND:
        module, *arguments = words
        elsewhere = page.startswith("docs/decisions") or page == "docs/first-hour.md"
        if elsewhere or module.split(".")[0] in OTHERS or module.startswith(tuple(NOT_HERE)):
            continue
        gpu = "--backend tensorrt" in " ".join(arguments) or "--engine-json" in arguments
        if gpu or any(word in ("...", "…") or "[" in word for word in arguments):
            continue
        changed = []
        for word in arguments:
            for name, other in SAME.items():
                word = word.replace(name, other)
            changed.append(word)
        command = (module, *changed)
        if command not in seen:
            seen.add(command)
            yield command


COMMANDS = sorted(wanted(), key=lambda words: words[0] != "toolchain.build")  # bundles first, the rest as they stand


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, an ONNX file and a few labelled pictures under the names the pages use."""
    root = tmp_path_factory.mktemp("docs")
    shutil.copy(REPO / "calib/assets/vit_digits.safetensors", root / "model.safetensors")
    for name, data in list(picture_files("test").items())[::10]:
        path = root / "DIR" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def run(words: tuple[str, ...], place: Path) -> int:
    module, *arguments = words
    more = list(SHORT.get(module, []))
    if module == "toolchain.build":  # each has what any command on the pages wants of a bundle of its name
        targets = {"ort", *(["openvino"] if importlib.util.find_spec("openvino") else [])}
        if "--target" in arguments:
            targets |= set(arguments[arguments.index("--target") + 1].split(","))
        more += [word for target in sorted(targets) for word in ("--target", target)] + ["--force"]
    return cli.invoke(importlib.import_module(module).main, [*arguments, *more])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_runs(
    words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "openvino" in " ".join(words):
        pytest.importorskip("openvino")
    monkeypatch.chdir(place)
    code = run(words, place)
    said = capfd.readouterr()
    finds = words[0] in ("toolchain.lint", "runtime.doctor")  # exit code 1 is what they may find
    assert code in ((0, 1) if finds else (0,)), said.out + said.err
    assert "unexpected" not in said.err and "Traceback" not in said.err
    if words[0] == "toolchain.build":
        graph = next(place.glob("build/*/ort/model.onnx"))
        shutil.copy(graph, place / "model.onnx")


def test_nearly_all_commands_are_among_them() -> None:
    assert len(COMMANDS) >= 25
    assert {words[0] for words in COMMANDS} >= {
        "toolchain.build",
        "runtime.bench",
        "toolchain.report",
        "calib.synthesize",
    }
