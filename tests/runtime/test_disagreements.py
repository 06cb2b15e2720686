"""Which pictures two models part most on, and the page that shows them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.classes import Classes
from runtime.disagreements import worst, write
from runtime.predictions import Predictions

ENGINE = Predictions(
    np.array([[0, 1], [1, 0], [1, 0], [0, 1]]),
    np.array([0.9, 0.6, 0.8, 0.5], np.float32),
    np.array([0.9, 0.4, 0.1, 0.5], np.float32),
)
TWIN = Predictions(
    np.array([[0, 1], [0, 1], [0, 1], [1, 0]]),
    np.array([0.9, 0.7, 0.9, 0.55], np.float32),
    np.array([0.9, 0.7, 0.9, 0.55], np.float32),
)


def test_the_twins_lost_certainty_orders_them() -> None:
    assert worst(ENGINE, TWIN) == [2, 1, 3]
    assert worst(ENGINE, TWIN, most=1) == [2]
    assert worst(TWIN, TWIN) == []


def test_the_page_stands_alone_and_escapes_what_it_quotes(tmp_path: Path) -> None:
    paths = [tmp_path / f"<{i}>.png" for i in range(4)]
    for path in paths:
        Image.new("L", (400, 300), 128).save(path)
    classes = Classes(("a", "b"), ('tench "<script>"', "goldfish"))
    labels = np.array([0, 0, 1, 1])
    page = write(tmp_path / "new", [2, 1], ENGINE, TWIN, labels, paths, classes, title="a & b").read_text("utf-8")
    assert "<script>" not in page and "a &amp; b" in page and "&lt;2&gt;.png" in page
    images = re.findall(r'<img alt="([^"]*)" src="([^"]*)"', page)
    assert [alt for alt, _ in images] == [
        "picture labelled goldfish",
        "picture labelled tench &quot;&lt;script&gt;&quot;",
    ]
    assert all(source.startswith("data:image/jpeg;base64,") for _, source in images)
    assert "float32: " in page and "float32 twin" in page
    half = write(tmp_path / "new", [2], ENGINE, TWIN, labels, paths, classes, title="a", twin_precision="float16")
    assert "float32" not in half.read_text("utf-8") and "float16: " in half.read_text("utf-8")
    assert "3 of 4 pictures" in page and page.index("&lt;2&gt;") < page.index("&lt;1&gt;")
