"""Called by worker.py inside ComfyUI: sizes far from the one a model was trained at."""

import os
import sys

import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]


def node(name):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{name}"]


def trained_at(size):
    """The rig's model, as if it were trained at `size` pixels; every function here sets its own."""
    model = sampling.rig().model
    model.model.model_config.trained_size = size
    return model


def stated(folder, size):
    """What the loader reads of a file that says its trained size, and of one that does not."""
    weights, r = ours("models.modality_forcing.weights"), sampling.rig()
    path = os.path.join(folder, "network.safetensors")
    weights.save_network(path, r.network, r.config, {"trained_size": size} if size else {})
    model = ours("nodes.host.modality_forcing.loading").load_joint_model(path)
    return model.model.model_config.trained_size


def notes(width, height):
    """What each node that makes a latent says of a size, for a model trained at 32 pixels."""
    model, vae = trained_at(32), sampling.rig().vae
    image, told = torch.rand(1, height, width, 3), []
    module = sys.modules[node("EmptyJointLatent").__module__]
    before = module.tell
    module.tell = lambda lines, hidden: told.append(list(lines)) or before(lines, hidden)
    view = ours("models.core.geometry.view").View.from_depth(image[..., 0] + 1, units="metric")
    try:
        node("EmptyJointLatent").execute(model, width, height, 1)
        node("ImageToDepthLatent").execute(model, vae, image)
        node("DepthToImageLatent").execute(model, view)
        node("MaskedJointLatent").execute(model, vae, image)
    except ValueError:  # a whole image without a mask leaves a depth to sample: no refusal is expected
        raise
    finally:
        module.tell = before
    return told


def step_image(height, width, edge):
    """An image with one vertical edge at a column, not on the grid of the small depth."""
    image = torch.full((1, height, width, 3), 0.2)
    image[:, :, edge:] = 0.8
    return image


def guided(folder, height=128, width=192, edge=77):
    """Image to depth at the trained size of 64: the sampled shapes, what is decoded, also after a file."""
    r, model = sampling.rig(), trained_at(64)
    image = step_image(height, width, edge)
    latent, _, said = node("ImageToDepthLatent").execute(model, r.vae, image, "trained size").result
    out = sampling.ksample(model, latent, steps=2)
    # a depth whose edge is the image's, in the network's values: what a good model would have sampled
    shown, net = out["samples"].unbind()
    columns = torch.arange(net.shape[-1]) * width / 64 >= edge
    net = torch.where(columns, 1.2, 0.5).expand_as(net).contiguous()
    out = out.copy()
    out["samples"] = sampling.NestedTensor([shown, net])
    decode = node("DecodeJointLatent").execute
    picture, view = decode(out, r.vae).result
    latents = ours("nodes.host.modality_forcing.latent_files")
    apart = node("SplitJointLatent").execute(out).result
    (again,) = node("JoinJointLatent").execute(*apart).result
    saved = latents.save_joint_latent(out, "spatialweave_test/guided")["latents"][0]
    loaded = latents.load_joint_latent(f"{saved['subfolder']}/{saved['filename']} [output]")
    small = apart[0] | {"samples": torch.rand(1, 32, 8, 8)}
    (grown,) = node("JoinJointLatent").execute(small, {"samples": torch.rand(1, 1, 128, 128)}).result
    depth = view.depth[0]
    middle = depth[:, edge - 3 : edge + 3]
    return {
        "said": said.splitlines(),
        "sampled": [list(part.shape) for part in latent["samples"].unbind()],
        "image": torch.equal(picture, image),
        "view": [list(view.depth.shape), torch.equal(view.image, image)],
        "edge": [float((middle[:, i + 1] / middle[:, i]).log().abs().mean()) for i in range(5)],
        "others": [torch.equal(decode(x, r.vae).result[1].depth, view.depth) for x in (again, loaded)],
        "grown": list(decode(grown, r.vae).result[1].depth.shape),
    }


def small_ones_stay(size=48):
    """An input below the trained size is not scaled, and nothing is said."""
    image = torch.rand(1, size, size, 3)
    values = trained_at(64), sampling.rig().vae, image, "trained size"
    latent, _, said = node("ImageToDepthLatent").execute(*values).result
    return [list(latent["samples"].unbind()[1].shape), said, "spatialweave_guide" in latent]


def depth_scaled():
    """Depth to Image at the trained size."""
    depth = 1 + torch.rand(1, 96, 192)
    view = ours("models.core.geometry.view").View.from_depth(depth, units="metric")
    latent, said = node("DepthToImageLatent").execute(trained_at(64), view, "trained size").result
    return [[list(part.shape) for part in latent["samples"].unbind()], said]


def other_choice():
    try:
        node("ImageToDepthLatent").execute(
            trained_at(64), sampling.rig().vae, torch.rand(1, 64, 64, 3), "any"
        )
    except ValueError as error:
        return str(error)
    return "no error"
