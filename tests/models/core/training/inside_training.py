"""A toy task for the trainer's tests; run as a script, it trains it:
python inside_training.py ROOT RECIPE.json
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace


def name_checkout(root):
    """As tests/conftest.py does, for a process without pytest."""
    if importlib.util.find_spec("spatialweave") is None:
        spec = importlib.util.spec_from_file_location("spatialweave", Path(root) / "__init__.py")
        sys.modules["spatialweave"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def build_toy(recipe):
    """Denoise 8 numbers. Dropout, an unused parameter and a buffer are there because real
    models have them.
    """
    import torch
    from torch import nn

    from spatialweave.models.core.training.loop import Task

    class Toy(nn.Module):
        def __init__(self, operations=nn):
            super().__init__()
            self.body, self.head, self.unused = (
                operations.Linear(8, 16), operations.Linear(16, 8), operations.Linear(2, 2),
            )
            self.drop = nn.Dropout(0.1)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x):
            return self.head(self.drop(torch.nn.functional.silu(self.body(x)))) * self.scale

    class Numbers(torch.utils.data.Dataset):
        x = torch.randn(37, 8, generator=torch.Generator().manual_seed(1))

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return {"x": self.x[index], "caption": str(index)}

    def loss(model, batch, generator):
        noise = torch.randn(batch["x"].shape, generator=generator)
        value = (model(batch["x"] + noise) - batch["x"]).square().mean()
        return value * recipe.loss.get("factor", 1.0), {"square": value.detach()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Task(Toy(), loss, Numbers())


class Clock:
    """Time that passes with each call of the loss and each checkpoint alone, so that no test depends on the
    machine."""

    def __init__(self, monkeypatch, *modules, step=0.2, save=1.5):
        from spatialweave.models.core.training import fit, loop

        self.now, self.calls, self.step, self.slow = 100.0, 0, step, {}
        for module in (fit, loop, *modules):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        written = loop.save_checkpoint

        def save_checkpoint(*given, **options):
            self.now += save
            return written(*given, **options)

        monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)

    def build(self, recipe):
        task = build_toy(recipe)

        def loss(*given):
            self.calls += 1
            self.now += self.step * (10 if self.slow and self.calls > self.slow["after"] else 1)
            return task.loss(*given)

        return replace(task, loss=loss)

    def run(self, recipe, output, **options):
        from spatialweave.models.core.training.loop import run_recipe

        return run_recipe(recipe, {"toy": self.build}, output=output, **options)


if __name__ == "__main__":
    name_checkout(sys.argv[1])
    import torch

    torch.set_num_threads(1)
    from spatialweave.models.core.training.loop import run_recipe

    outcome = run_recipe(sys.argv[2], {"toy": build_toy})
    sys.stdout.write(f"{outcome.ending} {outcome.step} {outcome.checkpoint.name}\n")
