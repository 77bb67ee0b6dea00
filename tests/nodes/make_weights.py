"""Random weights of the tiny preset, in the files' own format, for a checkout that ships none yet:
python make_weights.py FOLDER
"""

import sys
from pathlib import Path

import torch

from spatialweave.models.core.weights.files import write_tensors
from spatialweave.models.modality_forcing.config import PRESETS
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.weights import save_network
from spatialweave.models.tiny.codec import TinyCodec
from spatialweave.models.tiny.text import TinyTextEncoder


def make_weights(folder):
    """tiny.safetensors, codec.safetensors, text.safetensors: outputs of about unit size,
    so that errors show.
    """
    torch.manual_seed(0)
    folder = Path(folder)
    network = ModalityForcing(PRESETS["tiny"])
    for name, value in network.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.6 * value.shape[1] ** -0.5)
        elif name.startswith("cross_alpha"):
            torch.nn.init.constant_(value, 0.3)
    save_network(folder / "tiny.safetensors", network, PRESETS["tiny"])
    write_tensors(folder / "codec.safetensors", TinyCodec().state_dict(), {}, kind="tiny image codec")
    write_tensors(folder / "text.safetensors", TinyTextEncoder().state_dict(), {}, kind="tiny text encoder")
    return folder


if __name__ == "__main__":
    make_weights(sys.argv[1])
