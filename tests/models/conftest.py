"""The tiny I-LDM with random weights, as files: a checkout need not have trained ones,
and tests do not depend on how good they are.
"""

import pytest
import torch


@pytest.fixture(scope="session")
def write_tiny():
    """write_tiny(folder, seed) -> the folder with base.safetensors, vae.safetensors, lora.safetensors
    of the tiny layout.
    """
    diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    from safetensors.torch import save_file

    from spatialweave.models.intrinsic_ldm import tiny
    from spatialweave.models.intrinsic_ldm.network import projections
    from spatialweave.models.intrinsic_ldm.weights import save_intrinsic_vae
    from spatialweave.models.tiny.text import TinyTextEncoder

    def write(folder, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
            image, maps = (diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(channels)) for channels in (3, 8))
            text = TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS)
            lora = {}
            for path, projection in projections(unet).items():
                lora[f"unet.{path}.lora_A.weight"] = (
                    torch.randn(3, projection.inputs) * projection.inputs**-0.5
                )
                lora[f"unet.{path}.lora_B.weight"] = torch.randn(projection.outputs, 3) * 0.3
        parts = (part.state_dict() for part in (unet, image, text))
        tiny.save_base(folder / "base.safetensors", tiny.TinyBase(*parts, vae_scale=1.7))
        save_intrinsic_vae(folder / "vae.safetensors", maps.state_dict(), tiny.VAE, latent_scale=0.6)
        save_file(lora, folder / "lora.safetensors")
        return folder

    return write
