"""The page of a checked edit: what is drawn where."""

import torch

from spatialweave.models.core.visualize.edit_sheet import edit_sheet, resize_masks


def disc(x, y, radius=12):
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def sheet(sentence="Done: it moved. All is well.", is_done=True, **others):
    grey = torch.full((96, 128, 3), 0.5)
    masks = {
        "object_before": disc(30, 48), "object_after": disc(90, 48),
        "changed": disc(30, 48) | disc(60, 80, 6),
    }
    return edit_sheet(grey, grey, **masks | others, sentence=sentence, is_done=is_done)


def near(page, color, tolerance=0.06):
    """Pixels of a color, as fractions of the page's width and height."""
    match = ((page - torch.tensor(color) / 255).abs() < tolerance).all(-1)
    rows, columns = match.nonzero().float().unbind(-1)
    return columns / page.shape[1], rows / page.shape[0]


def test_outlines_lie_where_the_masks_are():
    page = sheet(target=disc(100, 48))
    assert page.ndim == 3 and page.shape[2] == 3 and 0 <= float(page.min()) and float(page.max()) <= 1
    left, _ = near(page, (84, 190, 255))  # blue, in both panels
    assert bool((left < 0.5).any()) and bool((left > 0.5).any())
    green, _ = near(page, (120, 230, 120))
    legend = green < 0.4
    assert bool((green[~legend] > 0.7).all()) and int((~legend).sum()) > 50
    assert len(near(page, (255, 214, 64))[0]) > 50  # yellow: the goal


def test_an_arrow_leads_from_old_to_new():
    page = sheet()
    columns, rows = near(page, (255, 255, 255), 0.02)
    inside = rows < 0.6
    assert 0.6 < float(columns[inside].min()) < 0.68 and 0.8 < float(columns[inside].max()) < 0.9
    assert not len(near(sheet(object_after=disc(31, 48)), (255, 255, 255), 0.02)[0])


def test_other_changes_are_tinted_and_the_objects_are_not():
    page = sheet()
    columns, rows = near(page, (185, 99, 142), 0.05)
    assert len(columns) > 50 and bool((columns > 0.5).all())


def test_pages_of_all_verdicts_have_one_size():
    long = "Not done: " + "the red box remained; " * 12 + "." + " More of it." * 30
    assert sheet().shape == sheet(long, is_done=False).shape


def test_the_verdict_is_green_or_red():
    assert len(near(sheet(), (88, 196, 120))[0]) > 20 and not len(near(sheet(), (240, 104, 88))[0])
    failed = sheet("Not done: nothing moved. So it is.", is_done=False)
    assert len(near(failed, (240, 104, 88))[0]) > 20 and not len(near(failed, (88, 196, 120))[0])


def test_masks_come_back_at_the_images_size():
    again = resize_masks([disc(30, 48), disc(90, 48)], (192, 256))
    assert (
        again.shape == (2, 192, 256)
        and again.dtype == torch.float32
        and set(again.unique().tolist()) == {0.0, 1.0}
    )
    assert int(again[0].sum()) == 4 * int(disc(30, 48).sum())
