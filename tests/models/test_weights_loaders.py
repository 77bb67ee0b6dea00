"""Every loader of a shipped file refuses NaN in it, by file and tensor."""

import math

import pytest
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError, read_header
from spatialweave.models.intrinsic_ldm import tiny
from spatialweave.models.intrinsic_ldm.lora import open_lora
from spatialweave.models.intrinsic_ldm.weights import load_intrinsic_vae
from spatialweave.models.modality_forcing.pipeline import TINY_NETWORK
from spatialweave.models.modality_forcing.weights import load_network
from spatialweave.models.tiny.weights import CODEC_FILE, TEXT_FILE, load_codec, load_text_encoder
from spatialweave.models.world.judges import predictor, scorer

LOADERS = {
    "network": (load_network, TINY_NETWORK),
    "codec": (load_codec, CODEC_FILE),
    "text encoder": (load_text_encoder, TEXT_FILE),
    "tiny base": (tiny.load_base, tiny.BASE_FILE),
    "intrinsic VAE": (load_intrinsic_vae, tiny.VAE_FILE),
    "intrinsic LoRA": (open_lora, tiny.LORA_FILE),
    "predictor": (predictor.Predictor.from_pretrained, predictor.WEIGHTS),
    "scorer": (scorer.Scorer.from_pretrained, scorer.WEIGHTS),
}


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("what", LOADERS)
def test_a_bad_number_is_refused_by_file_and_tensor(tmp_path, what, bad):
    load, shipped = LOADERS[what]
    state = load_file(shipped)
    name = [name for name, value in sorted(state.items()) if value.is_floating_point()][-1]
    state[name].view(-1)[-1] = bad
    path = tmp_path / "mine.safetensors"
    save_file(state, path, metadata=dict(read_header(shipped).metadata))
    with pytest.raises(WeightsError) as error:
        load(path)
    assert f"Expected finite numbers in {name} of {path}, got 1 " in str(error.value)
