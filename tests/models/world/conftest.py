"""Hand-made scenes, and a second opinion on cameras: rays and poses in float64 NumPy, from the camera's
definition alone."""

import numpy as np
import pytest

from spatialweave.models.world.scene import Light, Scene, SceneCamera, SceneObject, Surroundings

CAMERA = SceneCamera(position=(1.1, 1.9, 5.2), target=(0.1, 0.5, -0.2), fov=50.0)
SUN = Light(position=(0.5, 0.8, 0.3), directional=True, color=(1.0, 1.0, 1.0), ambient=0.45)
LAMP = Light(position=(1.0, 3.0, 1.5), directional=False, color=(1.0, 1.0, 1.0), ambient=0.45)
ROOM = (3.2, 3.0, 8.5, 3.1)


@pytest.fixture
def make_object():
    def make(shape="ball", color="red", position=(0.2, -0.3), extents=(0.5, 0.5, 0.5), yaw=0.0):
        return SceneObject(shape, color, "small", "matte", position, extents, yaw)

    return make


@pytest.fixture
def make_scene():
    def make(*objects, camera=CAMERA, indoors=False):
        gray = (0.6, 0.6, 0.6)
        place = Surroundings(
            "plain",
            (gray, gray),
            0.0,
            "plain",
            gray,
            ROOM if indoors else None,
            ((0.3, 0.5, 0.8), (0.8, 0.8, 0.9)),
        )
        return Scene(0, tuple(objects), place, LAMP if indoors else SUN, camera)

    return make


@pytest.fixture
def look():
    """(origin 3, directions h w 3 with z-depth 1, rotation 3 3, focal) of a scene's camera."""

    def rays(scene, height, width):
        position, target = (
            np.array(v, dtype=np.float64) for v in (scene.camera.position, scene.camera.target)
        )
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, (0.0, 1.0, 0.0))
        right /= np.linalg.norm(right)
        rotation = np.stack((right, np.cross(forward, right), forward))
        focal = min(height, width) / 2 / np.tan(np.radians(scene.camera.fov / 2))
        x, y = np.meshgrid(
            (np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal
        )
        return position, np.stack((x, y, np.ones_like(x)), -1) @ rotation, rotation, focal

    return rays
