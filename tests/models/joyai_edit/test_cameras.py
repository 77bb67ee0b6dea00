"""Two of core's cameras to a change of viewpoint, against positions computed here by core's orbit formula."""

import math

import pytest

from spatialweave.models.joyai_edit.cameras import change_between


def orbit(yaw, pitch, distance=4.0, target=(0.0, 0.0, 0.0), **more):
    y, p = math.radians(yaw), math.radians(pitch)
    offset = (math.cos(p) * math.sin(y), math.sin(p), math.cos(p) * math.cos(y))
    position = dict(zip("xyz", (t + distance * o for t, o in zip(target, offset))))
    camera = {
        "position": position,
        "target": dict(zip("xyz", target)),
        "fov": 35.0,
        "zoom": 1.0,
        "cameraType": "perspective",
    }
    return camera | more


@pytest.mark.parametrize("before, after, expected", [
    ((0, 0), (45, 0), (45, 0, "unchanged")), ((35, 30), (-55, 15), (-90, -15, "unchanged")),
    ((170, 0), (-145, 0), (45, 0, "unchanged")),
    ((0, 0, 4), (0, 0, 2), (0, 0, "in")), ((0, 0, 4), (0, 0, 4.03), (0, 0, "unchanged")),
    ((0, 0, 4), (0, 0, 4.05), (0, 0, "out")),
    ((0, 0), (180, 0), (180, 0, "unchanged")),
    ((10, 0, 4, (1, 2, 3)), (32.5, 12.3, 4, (1, 2, 3)), (22.5, 12.3, "unchanged")),
])  # fmt: skip
def test_orbits(before, after, expected):
    change = change_between(orbit(*before), orbit(*after))
    assert (change.yaw, change.pitch, change.zoom) == expected


BEFORE = orbit(0, 0)
ROLLED = {"x": 0.0, "y": 0.0, "z": math.sin(math.radians(5)), "w": math.cos(math.radians(5))}


@pytest.mark.parametrize("after, words", [
    (orbit(45, 0, target=(0, 0.5, 0)), "look at one target, got targets (0, 0, 0) and (0, 0.5, 0)"),
    (
        orbit(
            45, 0, cameraType="orthographic"
        ), "Expected a perspective camera at after, got an orthographic one"
    ),
    (orbit(45, 0, fov=50.0), "Expected the same fov in both cameras, got 35 and 50 degrees"),
    (orbit(45, 0, zoom=2.0), "Expected the same zoom in both cameras, got 1 and 2"),
    (orbit(45, 0, distance=0.0), "Expected a camera away from its target at after"),
    (orbit(45, 0, distance=math.nan), "Expected a number at position.x of after, got nan"),
    (orbit(0, 90), "Straight from above yaw has no meaning"),
    (orbit(0, 0, quaternion=ROLLED), "got one that rolls by 10.0 degrees"),
    (
        {
            "position": {"x": 0, "y": 0, "z": 4}
        }, "Expected target with x, y and z in the camera at after, got None"
    ),
    ("a camera", "Expected a camera at after, got str"),
    (orbit(0, 80), None), (orbit(0, -85), None),
])  # fmt: skip
def test_cameras_that_no_prompt_describes_are_refused(after, words):
    if words is None:
        assert change_between(BEFORE, after).pitch in (80, -85)
        return
    with pytest.raises(ValueError) as error:
        change_between(BEFORE, after)
    assert words in str(error.value)


def test_a_pitch_over_the_top_is_refused():
    with pytest.raises(ValueError, match="Expected a pitch of -90 to 90 degrees, got 120"):
        change_between(orbit(0, -60), orbit(0, 60))


def test_a_level_cameras_rotation_is_accepted():
    half = math.radians(45) / 2
    turned = {"x": 0.0, "y": math.sin(half), "z": 0.0, "w": math.cos(half)}
    assert change_between(BEFORE, orbit(45, 0, quaternion=turned)).yaw == 45


@pytest.mark.parametrize("yaw, pitch", [(45, 0), (-45, 0), (0, 15), (30, -10)])
def test_the_signs_are_those_of_a_rendered_world(yaw, pitch):
    """Yaw + moves the camera to the viewer's right, so that what is nearer than the target moves left;
    pitch + goes up, it moves down.
    """
    from spatialweave.models.world.edits import orbit_camera
    from spatialweave.models.world.scene import camera_axes, sample_scenes

    (scene,) = sample_scenes(3, 1)
    before = scene.camera
    after = orbit_camera(before, yaw_degrees=yaw, pitch_degrees=pitch)
    cameras = [
        {"position": dict(zip("xyz", one.position)), "target": dict(zip("xyz", one.target))}
        for one in (before, after)
    ]
    change = change_between(*cameras)
    assert (change.yaw, change.pitch, change.zoom) == (yaw, pitch, "unchanged")

    def project(camera, point):
        right, down, forward = camera_axes(camera)
        offset = [p - c for p, c in zip(point, camera.position)]
        x, y, z = (sum(a * b for a, b in zip(axis, offset)) for axis in (right, down, forward))
        return x / z, y / z

    nearer = [t + 0.2 * (p - t) for p, t in zip(before.position, before.target)]
    (x0, y0), (x1, y1) = project(before, nearer), project(after, nearer)
    assert (x1 - x0) * yaw <= 0 and (yaw == 0 or abs(x1 - x0) > 0.01)
    assert yaw != 0 or ((y1 - y0) * pitch >= 0 and abs(y1 - y0) > 0.01)
