"""Loading the tiny system imports nothing heavy."""

import subprocess
import sys

import torch

from spatialweave.models.tiny.text import TinyTextEncoder
from spatialweave.models.tiny.weights import load_text_encoder


def test_neither_compiler_nor_algebra_is_imported():
    """Initial values on the meta device would: a second and 150 MB of every run."""
    code = (
        "import sys; from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline as P;"
        "P.from_preset('tiny'); sys.exit(', '.join({'torch._dynamo', 'sympy'} & {*sys.modules}) or 0)"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], check=False, capture_output=True, text=True)
    assert run.stderr.strip() == "" and run.returncode == 0


def test_an_encoder_for_training_still_draws_its_embeddings():
    torch.manual_seed(0)
    made = TinyTextEncoder(32)
    assert 0.8 < float(made.words.weight.detach().std()) < 1.2
    assert isinstance(load_text_encoder().words, torch.nn.Embedding)
