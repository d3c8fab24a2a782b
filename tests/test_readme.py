"""What the README shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from pixfit.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    shared: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec", dont_inherit=True), shared)
        assert sum(bool(line.strip()) for line in block.splitlines()) <= 25
    assert (tmp_path / "out.png").is_file()
    assert shared["large"].shape == (3, 800, 1200)  # type: ignore[attr-defined]


def test_the_commands_exist_with_their_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    lines = [line.partition("#")[0].split() for line in README.splitlines() if line.startswith("pixfit ")]
    assert len(lines) >= 6
    for _, verb, *rest in lines:
        command = commands[verb]
        if hasattr(command, "commands"):  # a group: the next word is the command
            command = command.commands[rest[0]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= known


def test_the_files_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
