"""The alignment loss against a loop over spots, and as something that can be learned."""

import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.training.alignment import HALF_TURNS, Aligner, PositionReader, code_positions


def test_loss_is_the_mean_cross_entropy_of_each_kind_over_its_spots():
    torch.manual_seed(0)
    aligner, rows = Aligner(8, (3, 2), finer=2).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    cells = torch.stack([torch.randint(0, 3, (2, 4, 6)), torch.randint(-1, 2, (2, 4, 6))], dim=1).to(
        torch.int8
    )
    logits = aligner.head(aligner.norm(rows))
    kinds = ([], [])
    for picture in range(2):
        for y in range(4):
            for x in range(6):
                token = logits[picture, (y // 2) * 3 + x // 2].reshape(5, 2, 2)[:, y % 2, x % 2]
                for kind, own in enumerate((token[:3], token[3:])):
                    number = int(cells[picture, kind, y, x])
                    if number >= 0:
                        kinds[kind].append(torch.logsumexp(own, 0) - own[number])
    assert_close(aligner(rows, cells), sum(torch.stack(values).mean() for values in kinds).float())


def test_a_kind_that_no_spot_has_adds_nothing():
    aligner = Aligner(4, (2, 5), finer=1)
    torch.nn.init.zeros_(aligner.head.bias)
    cells = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1.0)], dim=1)
    loss = aligner(torch.zeros(1, 4, 4), cells)
    assert_close(loss, torch.tensor(2.0).log())
    loss.backward()
    assert torch.isfinite(aligner.head.weight.grad).all()


def test_the_product_of_two_codes_tells_how_far_their_spots_are_apart():
    """Against the sum of cosines that it is, and most for a spot with itself,
    in a picture that is no square.
    """
    height, width = 4, 6
    codes = code_positions(height, width).double()
    turns = torch.pi * torch.tensor(HALF_TURNS, dtype=torch.float64)
    rows, columns = (
        index.flatten().double()
        for index in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    apart = [(each[:, None] - each) / size for each, size in ((rows, height), (columns, width))]
    wanted = sum((each[..., None] * turns).cos().sum(-1) for each in apart)
    torch.testing.assert_close(codes @ codes.T, wanted, rtol=0, atol=1e-5)
    assert torch.equal((codes @ codes.T).argmax(1), torch.arange(height * width))


def test_a_position_is_read_from_features_of_every_size():
    reader, sizes = PositionReader([16, 5]), ((8, 12), (4, 6))
    features = [code_positions(*sizes[0]).expand(3, -1, -1), torch.zeros(3, 24, 5)]
    with torch.no_grad():
        for head, weight in zip(reader.heads, (torch.eye(16), torch.zeros(16, 5)), strict=True):
            head.weight.copy_(weight)
            head.bias.zero_()
    # the first layer knows all, the second nothing: cosines and sines are 1/2 square on average
    torch.testing.assert_close(reader(features, sizes[0]), torch.tensor(0.25))
