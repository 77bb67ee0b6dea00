"""The list of sizes, typed where the hosts disagree."""

from spatialweave.models.joyai_edit.buckets import BUCKETS, WIDEST, core_crop, find_bucket


def test_the_list():
    assert len(BUCKETS) == len(set(BUCKETS)) == 49 and WIDEST == 4
    assert {(width, height) for height, width in BUCKETS} == set(BUCKETS)
    assert all(
        height % 64 == width % 64 == 0 and 0.87 < height * width / 1024**2 <= 1.05
        for height, width in BUCKETS
    )
    assert all(
        find_bucket(*bucket, order) == bucket for bucket in BUCKETS for order in ("comfyui", "original")
    )


def test_ties_are_the_hosts():
    assert find_bucket(768, 1024) == (832, 1152) and find_bucket(768, 1024, "original") == (896, 1152)
    assert find_bucket(1000, 800) == (1088, 896) and find_bucket(1000, 800, "original") == (1152, 896)
    assert find_bucket(768, 1024, "original", base=512) == (448, 576)


def test_what_core_alone_crops():
    assert core_crop((1080, 1920), find_bucket(1080, 1920)) == (15, 0, 1905, 1080)
    assert core_crop((300, 4000), (512, 2048)) == (1400, 0, 2600, 300)
