"""The measuring scripts with a stand-in for the command line: what they ask for, what they save, what they keep."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benches import cpu_latency, real_accuracy, record, verbs
from runtime.errors import IntvitError


class Verbs:
    """Answers each verb with the files it would leave; ``fail`` names a verb that stops with exit code 1."""

    def __init__(self, fail: str = "") -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.seen: list[tuple[set[str], set[str]]] = []
        self.fail = fail

    def __call__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        self.calls.append((module, list(arguments)))
        if module == self.fail:
            return 1
        options = dict(zip(arguments[::2], arguments[1::2], strict=False))
        if module == "toolchain.build":
            out = Path(options["--out"])
            pictures = self.names(options.get("--eval"))
            self.seen.append((pictures, self.names(options.get("--calib-data"))))
            reported = dict.fromkeys(("float_top1", "fake_quant_top1", "engine_top1", "stderr"), 80.0)
            reported["images"] = len(pictures)
            weights = "random" if options.get("--checkpoint") == "random" else "packaged"
            out.mkdir(parents=True, exist_ok=True)
            (out / "manifest.json").write_text(json.dumps({"weights": weights, "reported": reported}))
        if module == "runtime.bench":
            times = {"median_ms": 2.0, "p90_ms": 2.5, "p99_ms": 3.0, "raw_ms": [2.0] * 1000, "speedup": 2.0}
            times["baseline"] = {"median_ms": 4.0, "raw_ms": [4.0] * 10}
            Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(times))
        if module == "runtime.parity":
            Path(arguments[-1]).write_text(
                json.dumps({"ok": True, "logits_sqnr_db": 140.0, "free_logits_sqnr_db": 40.0, "taps": []})
            )
        return 0

    @staticmethod
    def names(folder: str | None) -> set[str]:
        return {path.name for path in Path(folder).glob("*/*.jpg")} if folder else set()

    def count(self, module: str) -> int:
        return sum(name == module for name, _ in self.calls)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cpu_latency, real_accuracy):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(100):
        path = tmp_path / "val" / f"n{index % 10:08d}" / f"{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture %d" % index)
    return tmp_path / "val"


def test_latency_rows_are_saved_kept_and_forced(work: Path) -> None:
    first = Verbs()
    rows = cpu_latency.measure_all(["vit_digits", "deit_t"], ["w8a8"], execute=first, results=work)
    assert [(row["model"], row["batch"], row["weights"]) for row in rows] == [
        ("vit_digits", 1, "packaged"),
        ("vit_digits", 8, "packaged"),
        ("deit_t", 1, "random"),
        ("deit_t", 8, "random"),
    ]
    assert first.count("toolchain.build") == 2
    assert len(rows[0]["engine_raw_ms"].split()) <= cpu_latency.KEPT_CALLS
    saved = json.loads((work / "cpu_latency.json").read_text())
    assert saved["rows"] == rows
    assert {"machine", "versions", "commit", "date", "seeds"} <= saved.keys()

    second = Verbs()
    assert len(cpu_latency.measure_all(["deit_t"], ["w8a8", "w4a8"], execute=second, results=work)) == 6
    assert second.count("runtime.bench") == 2, "only the missing scheme is measured"
    third = Verbs()
    assert len(cpu_latency.measure_all(["deit_t"], ["w8a8"], force=True, execute=third, results=work)) == 6
    assert third.count("runtime.bench") == 2


def test_a_failing_verb_stops_and_keeps_the_rows_before_it(work: Path) -> None:
    cpu_latency.measure_all(["vit_digits"], ["w8a8"], execute=Verbs(), results=work)
    with pytest.raises(IntvitError, match=r"toolchain\.build"):
        cpu_latency.measure_all(["deit_t"], ["w8a8"], execute=Verbs("toolchain.build"), results=work)
    assert len(json.loads((work / "cpu_latency.json").read_text())["rows"]) == 2


def test_every_method_is_evaluated_on_the_same_pictures_and_none_of_them_calibrates(work: Path, photos: Path) -> None:
    execute = Verbs()
    methods = ["psaq", "noise", "real"]
    rows = real_accuracy.measure_all(["w8a8"], methods, photographs=photos, execute=execute, results=work)
    assert [(row["method"], row["images"]) for row in rows] == [
        ("psaq", 68),
        ("psaq", 100),
        ("noise", 68),
        ("real", 68),
    ]
    evaluated = [pictures for pictures, _ in execute.seen]
    assert evaluated[0] == evaluated[2] == evaluated[3]
    calibrated = [pictures for _, pictures in execute.seen]
    assert calibrated[:3] == [set()] * 3
    assert len(calibrated[3]) == 32
    assert not calibrated[3] & evaluated[3]
    assert calibrated[3] | evaluated[3] == evaluated[1]
    assert rows[0]["seconds"] is not None
    assert rows[1]["seconds"] is None, "its build took the stages of the row before from the cache"
    taken = sorted(int(name[:3]) for name in calibrated[3])
    order = [int(path.name[:3]) for path in sorted(photos.glob("*/*.jpg"))]
    gaps = [b - a for a, b in itertools.pairwise(sorted(order.index(index) for index in taken))]
    assert set(gaps) <= {3, 4}, "evenly spread over the sorted list"

    again = Verbs()
    assert real_accuracy.measure_all(["w8a8"], methods, photographs=photos, execute=again, results=work) == rows
    assert again.calls == []


def test_too_few_photographs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match="too few"):
        real_accuracy.divide(tmp_path)


def test_rows_of_another_machine_are_never_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write_result("x", {"rows": [{"a": 1}]}, results=tmp_path)
    assert record.kept_rows("x", ["a"], False, tmp_path) == ([{"a": 1}], {(1,)})
    assert record.kept_rows("x", ["a"], True, tmp_path) == ([{"a": 1}], set())  # stays, and is measured again
    monkeypatch.setattr(record, "describe_versions", lambda: {"python": "2.7"})
    with pytest.raises(IntvitError, match="other versions"):
        record.kept_rows("x", ["a"], False, tmp_path)
    assert record.kept_rows("x", ["a"], True, tmp_path) == ([], set())


def test_put_row_replaces_by_key_and_stamps() -> None:
    rows = record.put_row([{"k": 1, "v": 1}, {"k": 2, "v": 1}], {"k": 2, "v": 9}, ["k"])
    assert [(row["k"], row["v"]) for row in rows] == [(1, 1), (2, 9)]
    assert rows[1]["date"] == record.today()
    assert len(record.put_row(rows, {"k": 3}, ["k"])) == 3


def test_a_record_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(IntvitError, match=r"x\.json"):
        record.read_result("x", tmp_path)
    assert record.read_result("absent", tmp_path) is None


def test_git_commit_outside_git_is_empty(tmp_path: Path) -> None:
    assert record.git_commit(tmp_path) == ""


def test_options_name_what_is_known() -> None:
    assert verbs.chosen("", ["a", "b"], "--x") == ["a", "b"]
    assert verbs.chosen("b, a", ["a", "b"], "--x") == ["a", "b"]
    with pytest.raises(IntvitError, match="known: a, b"):
        verbs.chosen("c", ["a", "b"], "--x")
