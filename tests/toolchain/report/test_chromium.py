"""The page in headless Chromium: no console message, no request to anywhere, nothing wider than the screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.toolchain.report.pages import measured_bundle
from toolchain.report import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_report([measured_bundle(root / "w8a8"), measured_bundle(root / "w4a8", "w4a8")], root / "report.html")
    return root / "report.html"


def visit(page: Path, folder: Path, width: int, *more: str) -> tuple[str, str]:
    """(what Chromium logged, the page's DOM after loading); writes shot.png and net.json into ``folder``."""
    said, dom = "", ""
    profile = f"--user-data-dir={folder / 'profile'}"
    outputs = ([f"--screenshot={folder / 'shot.png'}", f"--log-net-log={folder / 'net.json'}"], ["--dump-dom"])
    for output in outputs:
        command = [CHROMIUM, *FLAGS, f"--window-size={width},1600", profile, *output, *more, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        said, dom = said + done.stderr, done.stdout
    return said, dom


def asked_for(log: Path) -> set[str]:
    """Every address a page asked for, from Chromium's network log; what the browser asks for itself has no origin."""
    events = json.loads(log.read_text("utf-8"))["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {one["url"] for one in asked if one["initiator"] != "not an origin"}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_said_asked_or_cut_off(page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    said, dom = visit(page, tmp_path, width, *(["--force-dark-mode"] if scheme == "dark" else []))
    assert "CONSOLE" not in said, said
    assert asked_for(tmp_path / "net.json") == set()
    assert dom.count("<svg") == page.read_text("utf-8").count("<svg") > 5
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size[1] == 1600 and len(shot.convert("RGB").getcolors(1 << 24) or []) > 50


def test_the_check_sees_a_console_error_and_a_request(tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text('<img alt="x" src="http://127.0.0.1:9/x.png"><script>console.error("spoiled")</script>')
    said, _ = visit(spoiled, tmp_path, 800)
    assert "CONSOLE" in said
    assert asked_for(tmp_path / "net.json") == {"http://127.0.0.1:9/x.png"}


PROBE = """<script>onload = () => {
  const scrolls = ".wide, figure, details:not([open]), .stack thead";
  const out = one => !one.closest(scrolls) && one.getBoundingClientRect().right > innerWidth + 1;
  const wide = [...document.querySelectorAll("body *")].filter(out).map(one => one.tagName + "." + one.className);
  parent.postMessage(JSON.stringify([innerWidth, wide]), "*");
}</script></body>"""
FRAME = """<title>waiting</title><script>onmessage = event => { document.title = event.data; }</script>
<iframe style="width:390px;height:9000px;border:0" src="probed.html"></iframe>"""


def test_no_part_is_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    """In a frame, for a headless window is never narrower than 500 pixels; tables and charts may scroll."""
    (tmp_path / "probed.html").write_text(page.read_text("utf-8").replace("</body>", PROBE))
    (tmp_path / "frame.html").write_text(FRAME)
    _, dom = visit(tmp_path / "frame.html", tmp_path, 1000, "--virtual-time-budget=8000")
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None, dom
    assert json.loads(found[1]) == [390, []]
