"""PatchGAN discriminator."""

from __future__ import annotations

import torch

from wsi2ihc.models.networks import PatchDiscriminator


def test_architecture_is_the_published_one() -> None:
    network = PatchDiscriminator()
    assert sum(one.numel() for one in network.parameters()) == 2_768_705
    image = torch.zeros(2, 3, 256, 256)
    assert network.eval()(image, image).shape == (2, 1, 30, 30)


def test_receptive_field_is_70_px() -> None:
    network = PatchDiscriminator(4).eval()
    image = torch.rand(1, 3, 128, 128, requires_grad=True)
    network(image, torch.zeros_like(image))[0, 0, 7, 7].backward()
    assert image.grad is not None
    touched = image.grad.abs().sum((0, 1)) > 0
    rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70
    assert int(columns.max() - columns.min()) + 1 == 70


def test_logits_depend_on_both_images() -> None:
    network = PatchDiscriminator(4).eval()
    one, other = torch.rand(2, 1, 3, 64, 64)
    before = network(one, other)
    assert not torch.equal(before, network(other, other))
    assert not torch.equal(before, network(one, one))
