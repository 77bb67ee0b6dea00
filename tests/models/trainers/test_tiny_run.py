"""A chain of data and recipes, run in a given time: on a toy, of which the real chains differ in nothing but
their steps."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import spatialweave
from spatialweave.models.cli.console import build_parser
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.trainers import tiny_run
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.tiny_chains import CAPTURED, CHAINS, PACK, DataStep, TrainStep, move_paths
from spatialweave.models.trainers.tiny_run import ChainRequest, prepare_chain, train_chain

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
SCRIPT = Path(__file__).parents[1] / "core" / "training" / "inside_training.py"
_spec = importlib.util.spec_from_file_location("inside_training", SCRIPT)
inside_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_training)
STEPS = [(system, step) for system, chain in CHAINS.items() for step in chain]
TRAINED = [(system, step) for system, step in STEPS if isinstance(step, TrainStep)]


@pytest.mark.parametrize("system, step", TRAINED, ids=lambda value: getattr(value, "recipe", value))
def test_recipes_of_a_chain_are_there_and_take_what_a_card_changes(system, step):
    recipe = Recipe.read(PACK / step.recipe)
    on_card = Recipe.from_json(recipe.to_json() | {"resident": True} | step.card)
    assert on_card.system in BUILDERS and on_card.batch_size >= recipe.batch_size and on_card.lr >= recipe.lr


@pytest.mark.parametrize("system", CHAINS)
def test_a_chain_makes_what_it_reads_before_it_reads_it(system):
    made, unmade = set(), []
    for step in CHAINS[system]:
        if isinstance(step, DataStep):
            words = step.command.split()
            assert build_parser().parse_args(words).command == words[0] and step.makes in words
            read = [word for word in words if word.startswith("runs/")]
            unmade += [word for word in read if not word.startswith(tuple(made))]
            made.add(step.makes)
            continue
        recipe = Recipe.read(PACK / step.recipe)
        made |= {step.caches.rpartition("/")[0]} if step.caches else set()
        texts = [value for part in (recipe.model, recipe.data) for value in find_texts(part)]
        paths = [text for text in texts if text.startswith(("runs/", "data/"))]
        unmade += [f"{step.recipe}: {path}" for path in paths if not path.startswith(tuple(made))]
        made.add(recipe.output)
    assert made and not unmade


def find_texts(value):
    if isinstance(value, dict):
        return [text for each in value.values() for text in find_texts(each)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("page", ["training.md", "intrinsic_training.md"])
def test_chains_are_the_commands_of_the_pages(page):
    """In their order; data made beforehand comes earlier here."""
    text = (Path(spatialweave.__file__).parent / "docs" / page).read_text().replace(" \\\n       ", "")
    lines = [line.strip().replace(" --workers 2", "") for line in text.splitlines()]
    systems = ["intrinsic_ldm"] if page.startswith("intrinsic") else ["modality_forcing", "spatial_diff"]
    for system in systems:
        chain = CHAINS[system]
        data = [step for step in chain if isinstance(step, DataStep) and not step.share]
        for group in (data, [step for step in chain if step not in data]):
            places = [lines.index(type_step(step)) for step in group]
            assert places and places == sorted(places)


def type_step(step):
    """As the pages have it, without the option that changes no result."""
    if isinstance(step, TrainStep):
        return f"spatialweave train {step.recipe}"
    return f"spatialweave {step.command.replace(' --batch 64', '')}"


def test_shares_of_a_chain_are_a_whole():
    for chain in CHAINS.values():
        assert sum(step.share for step in chain) == pytest.approx(1)


def test_paths_move_where_they_are_one():
    folders = {"data": Path("/d"), "runs": Path("r")}
    given = {"a": "data/world", "b": {"c": "runs/x/y.safetensors"}, "d": ["data/world"], "e": "tiny", "f": 3}
    expected = {"a": "/d/world", "b": {"c": "r/x/y.safetensors"}, "d": ["data/world"], "e": "tiny", "f": 3}
    assert move_paths(given, folders) == expected


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A chain of two toys with a command between them, and what was said and run."""
    recipe = {"system": "toy", "steps": 1000, "batch_size": 4, "warmup": 10, "ema": 0.9}
    for number in (1, 2):
        values = recipe | {"data": {"scenes": 500}, "output": f"runs/{number}"}
        (tmp_path / f"{number}.json").write_text(json.dumps(values))
    chain = (
        DataStep("world data/one --scenes 400", "data/one"),
        TrainStep(str(tmp_path / "1.json"), 0.5, {}, "data/one/cache-*"),
        DataStep("world data/two --scenes 30", "data/two", 0.1),
        TrainStep(str(tmp_path / "2.json"), 0.4),
    )
    built, ran, said, clock = [], [], [], inside_training.Clock(monkeypatch, tiny_run)

    def build(recipe):
        built.append(recipe)
        (tmp_path / "data" / "one" / "cache-1").touch()
        return clock.build(recipe)

    def run_command(words):
        ran.append(words)
        folder = Path(words[1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.jsonl").write_text("{}\n" * int(words[words.index("--scenes") + 1]))

    monkeypatch.setitem(tiny_run.CHAINS, "toy", chain)
    monkeypatch.setattr(tiny_run, "BUILDERS", {"toy": build})
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    request = ChainRequest("toy", 1.0, tmp_path / "data", tmp_path / "runs")
    return request, run_command, built, ran, said


def test_a_chain_is_prepared_trained_and_taken_up(toy, tmp_path):
    request, run_command, built, ran, said = toy
    with pytest.raises(ValueError, match=r"beforehand, got none in .*one, .*cache-\*. Make it with: .*--p"):
        train_chain(request, run_command, said.append)
    prepare_chain(request, run_command, said.append)
    assert ran == [["world", f"{tmp_path}/data/one", "--scenes", "400", "--workers", "1"]] and len(built) == 1
    prepare_chain(request, run_command, said.append)
    assert len(ran) == 1, "what is there is not made again"

    hurried = tiny_run.replace(request, minutes=1e-3)
    assert not train_chain(hurried, run_command, said.append) and "the time is over" in said[-1]
    assert train_chain(request, run_command, said.append)
    assert ran[1] == ["world", f"{tmp_path}/data/two", "--scenes", "30"]
    one, two = (Recipe.read(tmp_path / "runs" / name / "recipe.json") for name in "12")
    assert one.fit_minutes == two.fit_minutes == 0 and one.steps != 1000
    assert 1000 * two.steps / one.steps == pytest.approx(1000, rel=0.1), "what the command left is used, too"
    trained = len(built)
    assert train_chain(request, run_command, said.append) and len(built) == trained, "finished stays finished"


def test_a_chain_that_was_stopped_goes_on_with_its_schedule(toy, tmp_path, monkeypatch):
    request, run_command, built, ran, said = toy
    prepare_chain(request, run_command, said.append)

    def stop_soon(recipe, builders, **options):
        def stop(record):
            raise KeyboardInterrupt

        return run_recipe(tiny_run.replace(recipe, log_every=1), builders, on_log=stop, **options)

    run_recipe = tiny_run.run_recipe
    monkeypatch.setattr(tiny_run, "run_recipe", stop_soon)
    assert not train_chain(request, run_command, said.append) and said[-1].startswith("interrupted at step")
    planned = Recipe.read(tmp_path / "runs" / "1" / "recipe.json")
    monkeypatch.setattr(tiny_run, "run_recipe", run_recipe)
    assert train_chain(request, run_command, said.append)
    assert any("resumed" in line for line in said)
    assert Recipe.read(tmp_path / "runs" / "1" / "recipe.json").steps == planned.steps


def test_another_run_in_a_chains_folder_is_refused(toy, tmp_path):
    request, run_command, built, ran, said = toy
    prepare_chain(request, run_command, said.append)
    train_chain(request, run_command, said.append)
    recipe = json.loads((tmp_path / "1.json").read_text()) | {"lr": 0.5}
    (tmp_path / "1.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"got changes: lr \(was 0.0001, is 0.5\)"):
        train_chain(request, run_command, said.append)


def test_a_trial_takes_fewer_scenes(toy, tmp_path):
    request, run_command, built, ran, said = toy
    request = tiny_run.replace(request, scenes=65, workers=3)
    prepare_chain(request, run_command, said.append)
    assert ran == [["world", f"{tmp_path}/data/one", "--scenes", "128", "--workers", "3"]]
    assert built[0].data["scenes"] == 128


def test_preparing_needs_no_weights_of_the_chain(toy, tmp_path):
    request, run_command, built, ran, said = toy
    recipe = json.loads((tmp_path / "1.json").read_text())
    model = {"weights": "runs/0/network.safetensors", "ship": "float16"}
    (tmp_path / "1.json").write_text(json.dumps(recipe | {"model": model}))
    prepare_chain(request, run_command, said.append)
    assert built[0].model == {"ship": "float16"}


def test_a_card_takes_other_batches_and_goes_on_where_it_cannot_capture(toy, tmp_path, monkeypatch):
    request, run_command, built, ran, said = toy
    prepare_chain(request, run_command, said.append)
    step = TrainStep(str(tmp_path / "1.json"), 1.0, {"batch_size": 64, "lr": 0.5, **CAPTURED})
    assert not tiny_run.read_chain_recipe(step, request).capture
    monkeypatch.setattr(tiny_run, "find_device", lambda: SimpleNamespace(type="cuda"))
    recipe = tiny_run.read_chain_recipe(step, request)
    assert (recipe.batch_size, recipe.lr, recipe.device_noise, recipe.capture) == (64, 0.5, True, True)
    tried = []

    def run_recipe(recipe, builders, **options):
        tried.append(recipe.capture)
        if recipe.capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        return real(tiny_run.replace(recipe, device_noise=False), builders, **options)

    real = tiny_run.run_recipe
    monkeypatch.setattr(tiny_run, "run_recipe", run_recipe)
    monkeypatch.setattr(tiny_run, "is_finished", lambda recipe: len(tried) > 1)
    assert tiny_run.train_step(step, request, 160.0, 0.5, said.append) and tried == [True, False]
    assert any("not captured, its steps are launched one by one (operation not" in line for line in said)
