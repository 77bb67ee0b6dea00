"""Called by worker.py inside ComfyUI: Check Edit on images that numpy drew."""

import json

import numpy as np
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
FLOOR = 5.0  # metres to a wall that faces the camera


def run(**inputs):
    return core.NODE_CLASS_MAPPINGS["SpatialWeave_CheckEdit"].EXECUTE_NORMALIZED(**inputs)


def background(height=96, width=128):
    """A grey wall with blotches, different everywhere."""
    y, x = np.mgrid[:height, :width]
    wall = 0.5 + 0.12 * np.sin(0.31 * x + 0.002 * y * y) + 0.1 * np.cos(0.23 * y + 0.003 * x * x)
    return np.stack([wall, wall * 0.95, wall * 0.9], -1).astype(np.float32)


def disc(image, center, radius, color=(0.1, 0.25, 0.9)):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    inside = (x + 0.5 - center[0]) ** 2 + (y + 0.5 - center[1]) ** 2 < radius**2
    image = image.copy()
    image[inside] = color
    return image, inside


def frame(image, box):
    """A red rectangle with lines of two pixels."""
    left, top, right, bottom = box
    image = image.copy()
    for rows, columns in (
        (slice(top, top + 2), slice(left, right)), (slice(bottom - 2, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + 2)), (slice(top, bottom), slice(right - 2, right)),
    ):  # fmt: skip
        image[rows, columns] = (1, 0, 0)
    return image


def view(depth, camera=True, units="metric"):
    geometry = ours("models.core.geometry.camera")
    others = (
        {"intrinsics": geometry.intrinsics_from_fov(50.0, depth.shape[-1], depth.shape[-2])} if camera else {}
    )
    return ours("models.core.geometry.view").View.from_depth(torch.from_numpy(depth), units=units, **others)


def given(shift=(40, 0), **changes):
    """A disc at 4 metres before a wall at 5, moved by so many pixels."""
    before, old = disc(background(), (40, 48), 12)
    after, new = disc(background(), (40 + shift[0], 48 + shift[1]), 12)
    depth = np.where(old, 4.0, FLOOR).astype(np.float32)[None]
    inputs = {
        "before": torch.from_numpy(before)[None], "after": torch.from_numpy(after)[None], "view": view(depth),
        "edit": {"edit": "move object"}, "fov_degrees": 0.0,
        "object_mask": torch.from_numpy(old).float()[None],
        "target_mask": torch.from_numpy(new).float()[None],
    }  # fmt: skip
    return inputs | changes


def answer(result):
    sheet, done, text, figures, changed, found = result.result
    return {
        "sheet": list(sheet.shape), "range": [float(sheet.min()), float(sheet.max())], "done": done,
        "text": text,
        "figures": json.loads(figures), "changed": [list(changed.shape), float(changed.mean())],
        "found": [list(found.shape), float(found.sum())], "shown": len(result.ui.as_dict()["images"]),
    }  # fmt: skip


def moved(masks=True, batch=1):
    """The disc moved by 40 pixels of 128, to its goal."""
    inputs = given()
    if not masks:
        inputs |= {"object_mask": None, "target_mask": None}
    if batch > 1:
        inputs["after"] = inputs["after"].repeat(batch, 1, 1, 1)
        inputs["after"][-1] = inputs["before"][0]
    return answer(run(**inputs))


def failed(case):
    """One wrong result each."""
    inputs = given()
    before, after = (inputs[name][0].numpy() for name in ("before", "after"))
    goal = (68, 36, 92, 60)
    images = {
        "nothing moved": before,
        "original remained": disc(before, (80, 48), 12)[0],
        "object gone": background(),
        "wrong place": disc(background(), (100, 80), 12)[0],
        "box remained": frame(after, goal),
    }
    return answer(run(**inputs | {"after": torch.from_numpy(images[case])[None]}))


def orbited(case):
    """A rendered orbit of 15 degrees to the right, told or asked for otherwise."""
    edits, render = ours("models.world.edits"), ours("models.world.render").render
    scenes = ours("models.world.scene").sample_scenes(3, 1)
    camera = edits.orbit_camera(scenes[0].camera, yaw_degrees=15.0)
    import dataclasses

    frames = [
        render([dataclasses.replace(scenes[0], camera=each)], 128, 128) for each in (scenes[0].camera, camera)
    ]
    before, after = (each.image for each in frames)
    asked = {"done": 15.0, "wrong direction": -15.0, "nothing moved": 15.0}[case]
    image = before if case == "nothing moved" else after
    typed = ours("models.core.geometry.view").View.from_depth(
        frames[0].depth, units="metric", intrinsics=frames[0].intrinsics
    )
    edit = {"edit": "move camera", "yaw_degrees": asked, "pitch_degrees": 0.0, "zoom": "unchanged"}
    return answer(run(before=before, after=image, view=typed, edit=edit, fov_degrees=0.0))


def refused(case):
    """The sentence that bad input ends with."""
    inputs = given()
    depth = inputs["view"].depth.numpy()
    wrong = {
        "sizes": {"after": torch.zeros(1, 90, 128, 3)},
        "nan": {"after": torch.full((1, 96, 128, 3), float("nan"))},
        "no camera": {"view": view(depth, camera=False)},
        "empty mask": {"object_mask": torch.zeros(1, 96, 128)},
        "mask size": {"target_mask": torch.ones(1, 64, 64)},
        "batch": {"after": inputs["after"].repeat(3, 1, 1, 1), "before": inputs["before"].repeat(2, 1, 1, 1)},
        "no depth": {"view": view(np.zeros_like(depth))},
        "other shape": {"view": view(np.ones((1, 96, 96), np.float32))},
        "covered": {"object_mask": torch.ones(1, 96, 128)},
        "tiny": {"before": torch.zeros(1, 4, 4, 3), "after": torch.ones(1, 4, 4, 3)},
        "yaw": {
            "edit": {"edit": "move camera", "yaw_degrees": float("nan"), "pitch_degrees": 0.0, "zoom": "in"}
        },
    }
    try:
        run(**inputs | wrong[case])
    except ValueError as error:
        return str(error)
    return None
