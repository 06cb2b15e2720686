"""Every command in README.md and docs/ is one that exists: its module, its options, its values, its make targets."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from calib.given import PACKAGED, SHORT_NAMES
from calib.recipes import methods
from calib.scheme import parse, require_buildable
from runtime import cli
from runtime.backends import BACKENDS
from tests.conftest import REPO
from toolchain.targets.choices import TARGETS

PAGES = [path for path in (REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))) if path.is_file()]
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
OTHERS = {"venv", "pip", "pytest", "ruff", "mypy"}


def code(text: str) -> Iterator[str]:
    """Lines of the fenced blocks, continued lines joined, and inline code."""
    for block in _FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from _INLINE.findall(_FENCE.sub("", text))


def commands(text: str) -> list[list[str]]:
    """Every ``python -m MODULE ...`` as words, without comments and shell operators."""
    found = []
    for line in code(text):
        match = re.search(r"(?:^|[\s$(])(?:\S*/)?python3? -m (.+)", line)
        if match is None:
            continue
        words = shlex.split(match[1], comments=True)
        end = next((i for i, word in enumerate(words) if word in ("&&", "||", "|", ";", ">", "#")), len(words))
        found.append(words[:end])
    return found


FOUND = [(page.relative_to(REPO).as_posix(), words) for page in PAGES for words in commands(page.read_text("utf-8"))]
OURS = sorted({words[0] for _, words in FOUND if words[0].split(".")[0] not in OTHERS})


def command_of(module: str) -> Any:
    """The command that ``python -m module`` runs, as typer made it (of click's classes, or of typer's own copy)."""
    main: Callable[..., None] = importlib.import_module(module).main
    app = typer.Typer(add_completion=False)
    app.command()(cli.guarded(main))
    return typer.main.get_command(app)


def problems(words: list[str]) -> list[str]:
    """What is wrong with one command, nothing where it could be typed as it stands."""
    module, *arguments = words
    if module.split(".")[0] in OTHERS:
        return []
    if importlib.util.find_spec(module.split(".")[0]) is None or importlib.util.find_spec(module) is None:
        return [f"there is no module {module}"]
    if not hasattr(importlib.import_module(module), "main"):
        return [f"{module} is no command"]
    command = command_of(module)
    if arguments in ([], ["..."], ["…"]):
        return []
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help"}
    options = [word.strip("[]").split("=")[0] for word in arguments if word.strip("[").startswith("-")]
    wrong = [f"{module} has no option {option}" for option in options if option not in known]
    if wrong or "--help" in options or any("[" in word or word in ("...", "…") for word in arguments):
        return wrong
    try:
        context = command.make_context(module, list(arguments))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return [error.format_message()]
    return wrong_values(context.params)


def wrong_values(values: dict[str, object]) -> list[str]:
    """Models, schemes, methods, targets and back ends that do not exist; words in capitals stand for anything."""
    wrong = []
    choices: dict[str, list[str]] = {
        "model": [*SHORT_NAMES, *PACKAGED],
        "method": methods(),
        "target": list(TARGETS),
        "backend": list(BACKENDS),
    }
    for name, allowed in choices.items():
        given = values.get(name)
        for value in given if isinstance(given, list | tuple) else [given]:
            parts = str(value).split(",") if name == "target" else [str(value)]
            known = all(part in allowed for part in parts)
            if value is not None and not str(value).isupper() and not known and "." not in str(value):
                wrong.append(f"--{name} {value}")
    bits = values.get("bits")
    if bits is not None and not str(bits).isupper():
        require_buildable(parse(str(bits)))
    return wrong


def test_there_is_a_readme_with_commands() -> None:
    if not (REPO / "README.md").is_file():
        pytest.skip("there is no README.md yet")
    assert [page for page, _ in FOUND if page == "README.md"]


@pytest.mark.parametrize(("page", "words"), FOUND, ids=[f"{page}: {' '.join(words)}" for page, words in FOUND])
def test_the_command_can_be_typed(page: str, words: list[str]) -> None:
    assert problems(words) == []


@pytest.mark.parametrize("module", OURS)
def test_help_lists_the_options(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.invoke(importlib.import_module(module).main, ["--help"]) == 0
    said = capsys.readouterr().out
    for parameter in command_of(module).params:
        for name in parameter.opts:
            assert name in said or not name.startswith("-")


def test_the_readme_names_every_page() -> None:
    text = (REPO / "README.md").read_text("utf-8")
    assert [page.name for page in (REPO / "docs").glob("*.md") if f"](docs/{page.name})" not in text] == []


def test_tables_are_not_torn() -> None:
    """A row behind an empty line is shown as text: it needs a header of its own."""
    for page in PAGES:
        lines = ["", *page.read_text("utf-8").splitlines(), ""]
        torn = [
            below
            for above, below, next_one in zip(lines, lines[1:], lines[2:], strict=False)
            if below.startswith("|")
            and not above.startswith("|")
            and not next_one.startswith(("|:", "| :", "|--", "| --", "|-"))
        ]
        assert torn == [], page


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(REPO).as_posix() for page in PAGES])
def test_make_targets_and_links_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE))
    asked = {match[1] for line in code(text) if (match := re.match(r"\s*\$?\s*make ([a-z-]+)", line))}
    assert asked <= targets
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _FENCE.sub("", text))
    missing = [link for link in links if "://" not in link and not link.startswith("mailto:")
               and not (page.parent / link).exists()]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize(
    ("line", "count", "wrong"),
    [
        ("python -m toolchain.build --model vit_t --bits w4a8", 1, 0),
        (".venv/bin/python -m runtime.bench BUNDLE --batch 2  # a comment", 1, 0),
        ("python -m runtime.accuracy BUNDLE --data DIR && echo done", 1, 0),
        ("python -m runtime.bench", 1, 0),
        ("python -m runtime.bench BUNDLE [--batch N]", 1, 0),
        ("python -m pytest -q", 1, 0),
        ("echo python", 0, 0),
        ("python -m runtime.nothing BUNDLE", 1, 1),
        ("python -m nowhere.nothing", 1, 1),
        ("python -m runtime.bench BUNDLE --bach 2", 1, 1),
        ("python -m runtime.bench BUNDLE [--bach N]", 1, 1),
        ("python -m runtime.bench --batch 2", 1, 1),
        ("python -m toolchain.build --bits w8a8", 1, 1),
        ("python -m toolchain.build --model vit_x --bits w8a8", 1, 1),
        ("python -m toolchain.build --model vit_t --bits w8a8 --method psaqq", 1, 1),
        ("python -m runtime.bench BUNDLE --batch many", 1, 1),
    ],
)
def test_the_check_itself(line: str, count: int, wrong: int) -> None:
    for text in (f"text\n```\n{line}\n```\n", f"text `{line}` text"):
        found = commands(text)
        assert len(found) == count
        assert len([problem for words in found for problem in problems(words)]) == wrong
