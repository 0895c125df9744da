"""Every python block of the documentation runs; every `harness` command it shows exists with those options."""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import click
import pytest

from harness import MixerSpec, hookspecs
from harness.cli import COMMANDS, harness

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    return [body for language, body in BLOCK.findall(page.read_text()) if language in languages]


def shown_commands():
    for page in PAGES:
        for body in blocks(page, "console", "sh", "bash", "shell"):
            for line in body.replace("\\\n", " ").splitlines():
                for part in line.removeprefix("$ ").split("&&"):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["harness"]:
                        yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "docs"}
    for body in blocks(page, "python"):
        exec(compile(body, page.name, "exec"), namespace)


@pytest.mark.parametrize("words", list(shown_commands()))
def test_shown_commands_parse(words):
    command: click.Command = harness
    context = click.Context(harness)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    try:
        command.make_context(command.name, list(words), resilient_parsing=False)
    except click.exceptions.Exit:
        assert "--help" in words


def test_every_command_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in COMMANDS if f"harness {name}" not in text]
    assert not missing


def test_code_blocks_that_name_a_file_equal_that_file():
    titled = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
    found = [block for page in PAGES for block in titled.findall(page.read_text())]
    assert len(found) >= 3
    for name, body in found:
        assert body == (ROOT / name).read_text(), name


def hooks():
    return [name for name in vars(hookspecs) if name.startswith("harness_")]


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_has_a_heading_with_its_signature(hook):
    signature = re.sub(r"collections\.abc\.|typing\.|'", "", str(inspect.signature(getattr(hookspecs, hook))))
    assert f"\n### `{hook}{signature}`\n" in (ROOT / "docs/plugins.md").read_text()


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_has_a_test_of_its_own(hook):
    assert f"\ndef test_{hook}_" in (ROOT / "tests/test_hooks.py").read_text()


def test_every_field_of_a_spec_is_in_the_table():
    text = (ROOT / "docs/plugins.md").read_text()
    missing = [field.name for field in dataclasses.fields(MixerSpec) if f"`{field.name}`" not in text]
    assert not missing
