"""The loss of labels that say which classes a pixel may be."""

from __future__ import annotations

import pytest
import torch

from rsseg_cli.models.losses import class_sets, cross_entropy, set_loss


def test_labels_allow_their_class_or_their_set():
    table = class_sets(3, [(0, 2)])
    assert table[[0, 1, 2, 3, 4, 255]].tolist() == [
        [True, False, False], [False, True, False], [False, False, True],
        [True, False, True], [False] * 3, [False] * 3,
    ]  # fmt: skip


def test_of_single_classes_it_is_cross_entropy_and_dice():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    labels[0, 0] = 255
    allowed = class_sets(3)[labels].permute(0, 3, 1, 2)
    entropy = cross_entropy(logits, labels, smoothing=0.0)
    loss = set_loss(logits, allowed, smoothing=0.0)
    assert 0 < loss - entropy < 1  # Dice
    certain = 50.0 * torch.nn.functional.one_hot(labels.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    assert set_loss(certain, allowed, smoothing=0.0) < 0.01


def test_a_set_takes_any_of_its_classes():
    allowed = class_sets(3, [(0, 2)])[torch.full((1, 4, 4), 3)].permute(0, 3, 1, 2)
    losses = []
    for mapped in range(3):
        logits = torch.zeros(1, 3, 4, 4)
        logits[:, mapped] = 20.0
        losses.append(set_loss(logits, allowed).item())
    assert losses[0] == losses[2] == pytest.approx(0, abs=1e-3)
    assert losses[1] > 15
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    set_loss(logits, allowed).backward()
    assert (logits.grad[:, 1] > 0).all()  # away from what it is not
    assert torch.equal(logits.grad[:, 0], logits.grad[:, 2])  # no choice between what it may be


def test_unknown_pixels_do_not_count():
    allowed = class_sets(3)[torch.full((1, 4, 4), 255)].permute(0, 3, 1, 2)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    set_loss(logits, allowed).backward()
    assert not logits.grad.any()
