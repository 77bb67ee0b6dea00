"""The console door: help that reads, exit codes, sentences."""

import json
import shlex
import subprocess
import sys

import pytest

from spatialweave.models.cli import console as cli
from spatialweave.models.cli import demo
from spatialweave.models.cli.help_texts import EXAMPLES


def list_parsers(parser, words=()):
    """(words of a command, its parser), with the actions of commands that have some."""
    for group in parser._subparsers._group_actions if parser._subparsers else ():
        for name, child in group.choices.items():
            yield (*words, name), child
            yield from list_parsers(child, (*words, name))


PARSERS = dict(list_parsers(cli.build_parser()))
COMMANDS = [words[0] for words in PARSERS if len(words) == 1]


def read_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_commands_are_those_that_the_readme_and_the_changelog_name():
    assert {"demo", "train", "evaluate", "world", "bench", "convert", "weights", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_help_explains_every_option(words, capsys):
    assert all(action.help or action.choices for action in PARSERS[words]._actions), (
        "an option without a word of help"
    )
    assert f"spatialweave {' '.join(words)} " in read_help(words, capsys)


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_help_names_defaults_where_there_are_any(words, capsys):
    said = " ".join(read_help(words, capsys).split())
    assert "None" not in said and "(default: False)" not in said and "(default: [])" not in said


def test_help_says_what_happens_without_an_option(capsys):
    said = " ".join(read_help(("world",), capsys).split())
    assert "pixels a side (default: 128)" in said and "another seed, other scenes (default: 0)" in said
    assert "what to do (default: list)" in " ".join(read_help(("weights",), capsys).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_can_be_typed(command, capsys):
    said = read_help((command,), capsys)
    for example in EXAMPLES[command]:
        assert example in said
        program, *arguments = shlex.split(example)
        assert program == "spatialweave" and cli.build_parser().parse_args(arguments).command == command


def test_help_of_train_names_every_recipe_and_where_it_lies(capsys, root):
    said = read_help(("train",), capsys)
    recipes = [path.relative_to(root).as_posix() for path in (root / "models").glob("*/recipes/*.json")]
    assert recipes and str(root) in said and not [name for name in recipes if f"  {name}\n" not in said]
    assert not [example for example in EXAMPLES["train"] if not (root / shlex.split(example)[2]).is_file()]


def test_every_command_is_a_file_of_its_own(root):
    """`add_NAME` of models/cli/NAME.py declares the command NAME."""
    for name, _, add in cli._COMMANDS:
        assert add.__name__ == f"add_{name}" and add.__module__ == f"spatialweave.models.cli.{name}"


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2


def test_help_needs_no_torch():
    code = (
        "import sys; from spatialweave.models.cli import console; console.build_parser(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_train_refuses_an_unknown_key_by_name(tmp_path, capsys):
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps({"system": "tiny_codec", "steps": 1, "learning_rat": 1}))
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "out")]) == 1
    assert "'learning_rat'" in capsys.readouterr().err


def test_train_says_how_to_make_the_data_it_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.json"
    recipe.write_text(
        json.dumps(
            {"system": "tiny_codec", "steps": 1, "data": {"folder": "data/none", "scenes": 10, "size": 64}}
        )
    )
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "out")]) == 1
    assert "spatialweave world data/none --scenes 10 --size 64" in capsys.readouterr().err


def test_evaluate_refuses_an_unknown_preset(capsys):
    assert cli.main(["evaluate", "modality_forcing", "--preset", "huge", "--n", "1"]) == 1
    assert "klein_9b" in capsys.readouterr().err


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run_demo", stop)
    assert cli.main(["demo"]) == 130
    assert "stopped" in capsys.readouterr().err
