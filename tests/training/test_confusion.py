"""The four metrics, against the paper's sums written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upscore.training.confusion import Confusion

CLASSES = 4
LABELS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 11]), st.integers(0, 3)), min_size=1, max_size=60)


def by_loops(pairs: list[tuple[int, int]]) -> dict[str, float]:
    """Long, Shelhamer and Darrell 2015, section 5, pixel by pixel."""
    known = [(t, a) for t, a in pairs if t < CLASSES]
    if not known:
        return dict.fromkeys(("pixel accuracy", "mean accuracy", "mean IoU", "frequency weighted IoU"), math.nan)
    accuracies, ious, weighted = [], [], 0.0
    for c in range(CLASSES):
        true = sum(t == c for t, _ in known)
        called = sum(a == c for _, a in known)
        both = sum(t == c == a for t, a in known)
        if true:
            accuracies.append(both / true)
        if true + called:
            iou = both / (true + called - both)
            ious.append(iou)
            weighted += true * iou
    return {
        "pixel accuracy": sum(t == a for t, a in known) / len(known),
        "mean accuracy": sum(accuracies) / len(accuracies),
        "mean IoU": sum(ious) / len(ious),
        "frequency weighted IoU": weighted / len(known),
    }


@given(LABELS)
def test_the_metrics_are_the_papers(pairs: list[tuple[int, int]]) -> None:
    truth, answer = (np.array(column) for column in zip(*pairs, strict=True))
    found = Confusion.empty(CLASSES).with_pixels(truth, answer).metrics()
    assert found == pytest.approx(by_loops(pairs), nan_ok=True)


@given(LABELS, LABELS)
def test_pixels_may_come_in_parts(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    parts = Confusion.empty(CLASSES)
    for pairs in (one, other):
        parts = parts.with_pixels(*(np.array(column) for column in zip(*pairs, strict=True)))
    whole = Confusion.empty(CLASSES).with_pixels(*(np.array(column) for column in zip(*one, *other, strict=True)))
    np.testing.assert_array_equal(parts.counts, whole.counts)


def test_eight_bit_labels_of_many_classes_do_not_overflow() -> None:
    truth, answer = np.array([[200, 255]], np.uint8), np.array([[199, 3]])
    confusion = Confusion.empty(201).with_pixels(truth, answer)
    assert confusion.counts.sum() == confusion.counts[200, 199] == 1


def test_nothing_counted_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in Confusion.empty(3).metrics().values())
