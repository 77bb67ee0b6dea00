"""The console door: help that reads, exit codes, sentences."""

import json
import subprocess
import sys

import pytest

from spatialweave.models import cli

COMMANDS = ("demo", "train", "evaluate", "world", "bench", "convert", "weights", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    parser = cli.build_parser()._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in parser._actions), "an option without a word of help"
    assert command in capsys.readouterr().out


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2


def test_help_needs_no_torch():
    code = "import sys; from spatialweave.models import cli; cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_train_refuses_an_unknown_key_by_name(tmp_path, capsys):
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps({"system": "tiny_codec", "steps": 1, "learning_rat": 1}))
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "out")]) == 1
    assert "'learning_rat'" in capsys.readouterr().err


def test_train_says_how_to_make_the_data_it_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps({"system": "tiny_codec", "steps": 1, "data": {"folder": "data/none", "scenes": 10, "size": 64}}))
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "out")]) == 1
    assert "spatialweave world data/none --scenes 10 --size 64" in capsys.readouterr().err


def test_evaluate_refuses_an_unknown_preset(capsys):
    assert cli.main(["evaluate", "modality_forcing", "--preset", "huge", "--n", "1"]) == 1
    assert "klein_9b" in capsys.readouterr().err


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_demo", stop)
    assert cli.main(["demo"]) == 130
    assert "stopped" in capsys.readouterr().err
