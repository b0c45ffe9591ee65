"""Boundary scores: maps that one can count by hand, the papers' code written out, and any cut into blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rsseg_cli.errors import UsageError
from rsseg_cli.evaluation.boundary import BoundaryCounts, check_widths, edges, halo_px, near_border
from rsseg_cli.evaluation.metrics import mean_of

HALO = 130


def padded(values: np.ndarray, fill: int) -> np.ndarray:
    return np.pad(np.asarray(values, np.uint8), HALO, constant_values=fill)


def count(
    mapped: np.ndarray, truth: np.ndarray, classes: int = 2, widths: tuple[int, ...] = (1, 3), block: int = 0
) -> BoundaryCounts:
    """Counts of a whole map, in blocks of `block` px a side (0: in one), as a reader of a large map would."""
    counts = BoundaryCounts(classes=classes, widths=widths)
    halo = halo_px(widths)
    height, width = np.shape(truth)
    mapped, truth = (
        np.pad(np.asarray(values, np.uint8), halo, constant_values=fill)
        for values, fill in ((mapped, classes), (truth, 255))
    )
    rows, cols = block or height, block or width
    for row in range(0, height, rows):
        for col in range(0, width, cols):
            size = min(rows, height - row), min(cols, width - col)
            part = np.s_[row : row + size[0] + 2 * halo, col : col + size[1] + 2 * halo]
            counts.add(mapped[part], truth[part], (slice(halo, halo + size[0]), slice(halo, halo + size[1])))
    return counts


def as_numbers(counts: BoundaryCounts) -> list[float]:
    arrays = tuple(counts.bands)
    return [*np.concatenate(arrays).ravel(), counts.edge_pixels, counts.missed, counts.false]


def random_blobs(seed: int, classes: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth of smooth patches with unlabelled holes, and a map that differs along borders and in places."""
    rng = np.random.default_rng(seed)
    planes = ndimage.gaussian_filter(rng.normal(size=(classes, height, width)), (0, 3, 3))
    truth = planes.argmax(0).astype(np.uint8)
    noise = ndimage.gaussian_filter(rng.normal(size=(classes, height, width)), (0, 2, 2))
    mapped = (planes + 0.4 * noise).argmax(0).astype(np.uint8)
    mapped[rng.random(mapped.shape) < 0.003] = classes  # none of the classes
    truth[ndimage.gaussian_filter(rng.normal(size=truth.shape), 4) > 0.09] = 255
    return mapped, truth


# Six columns of five rows, truth 0 0 0 1 1 1, map 0 0 1 1 1 1: the border lies a column too far left.
TRUTH = np.array([[0, 0, 0, 1, 1, 1]] * 5)
MAPPED = np.array([[0, 0, 1, 1, 1, 1]] * 5)


def test_bands_by_hand() -> None:
    counts = count(MAPPED, TRUTH)
    # within 1 px of the truth's border: columns 2 and 3; of the map's: columns 1 and 2
    assert counts.bands[0][:, 0].tolist() == [5, 5]
    assert counts.bands[1][:, 0].tolist() == [5, 5]
    assert counts.bands[2][:, 0].tolist() == [
        0,
        0,
    ]  # column 1 is 1 px from the map's border, not from the truth's
    # within 3 px: truth columns 0-2 and 3-5; map columns 0-1 and 2-4; in both 0-1 and 3-4
    assert counts.bands[0][:, 1].tolist() == [15, 15]
    assert counts.bands[1][:, 1].tolist() == [10, 15]
    assert counts.bands[2][:, 1].tolist() == [10, 10]
    assert counts.boundary_iou() == pytest.approx(np.array([[0, 10 / 15], [0, 10 / 20]]))


def test_trimap_by_hand() -> None:
    counts = count(MAPPED, TRUTH)
    # within 1 px: column 2 (class 0) is wrong, column 3 right; within 3 px all columns, one of six wrong
    assert counts.trimap_accuracy() == pytest.approx(np.array([[0, 10 / 15], [1, 1]]))
    assert counts.overall_trimap_accuracy() == pytest.approx([1 / 2, 5 / 6])


def test_distance_is_the_square_of_the_released_code() -> None:
    """A pixel of class 1 at (5, 5): within 2 px lie the 5 x 5 px around it, corners too."""
    truth = np.zeros((11, 11), np.uint8)
    truth[5, 5] = 1
    counts = count(truth, truth, widths=(2,))
    assert counts.bands[0].tolist() == [[24], [1]]
    assert (counts.boundary_iou() == 1).all()


def released_band(mask: np.ndarray, width: int) -> np.ndarray:
    """`mask_to_boundary` of the released code: a frame of zeros, then the mask less its `width` erosions."""
    eroded = ndimage.binary_erosion(
        np.pad(mask, 1), np.ones((3, 3)), iterations=width, border_value=1
    )[1:-1, 1:-1]  # fmt: skip
    return mask & ~eroded


@pytest.mark.parametrize("width", [1, 2, 3, 5, 10, 17])
def test_agrees_with_the_released_code_where_the_edge_is_no_contour(width: int) -> None:
    """A frame of a further class, as far as the band reaches, takes the edge of the image out of play."""
    mapped, truth = (np.where(values > 1, 0, values) for values in random_blobs(1, 2, 60, 70))
    wide = width + 1
    mapped, truth = (np.pad(values, wide, mode="edge") for values in (mapped, truth))
    inner = np.zeros(truth.shape, bool)
    inner[wide:-wide, wide:-wide] = True
    counts = BoundaryCounts(classes=2, widths=(width,))
    core = (slice(HALO + wide, -HALO - wide),) * 2
    counts.add(padded(mapped, 2), padded(truth, 255), core)
    for index in range(2):
        # reflected frames keep the erosion inside free of the image's edge
        bands = [
            released_band(np.pad(values == index, 40, mode="edge"), width)[40:-40, 40:-40] & inner
            for values in (truth, mapped)
        ]
        actual = counts.bands[0][index, 0], counts.bands[1][index, 0], counts.bands[2][index, 0]
        assert actual == (bands[0].sum(), bands[1].sum(), (bands[0] & bands[1]).sum())


def test_edge_of_the_map_is_no_contour() -> None:
    """A class that fills the map has no contour: no value, no mean."""
    counts = count(np.zeros((8, 8)), np.zeros((8, 8)))
    assert np.isnan(counts.boundary_iou()).all()
    assert np.isnan(counts.trimap_accuracy()).all()
    assert math.isnan(counts.wfm())
    assert np.isnan(mean_of(counts.boundary_iou().T)).all()


def test_border_of_unlabelled_ground_is_none() -> None:
    """Truth 0 0 - - - 1: the map's border in unlabelled ground counts nowhere, nor that of the hole."""
    truth = np.array([[0, 0, 255, 255, 255, 1]] * 4)
    mapped = np.array([[0, 0, 0, 1, 1, 1]] * 4)
    counts = count(mapped, truth, widths=(1, 3, 4))
    assert not counts.bands[0][:, :2].any()
    assert not counts.bands[1][:, :2].any()
    # 4 px from column 1 to column 5: across the hole another class does lie
    assert counts.bands[0][:, 2].tolist() == counts.bands[2][:, 2].tolist() == [4, 4]


def test_none_of_the_classes_is_wrong_and_makes_a_contour() -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[:, 6:] = 1
    mapped = truth.copy()
    mapped[4, 1] = 2  # no class, amid class 0
    counts = count(mapped, truth, widths=(1,))
    assert counts.bands[0][:, 0].tolist() == [9, 9]
    assert counts.bands[1][:, 0].tolist() == [9 + 8, 9]  # the eight pixels of class 0 around it
    assert counts.boundary_iou()[:, 0] == pytest.approx([9 / 17, 1])
    assert counts.trimap_accuracy()[:, 0].tolist() == [1, 1]


def test_a_class_of_one_side_has_no_overlap() -> None:
    counts = count(np.zeros((6, 6)), TRUTH[:, :6], widths=(1,))
    assert counts.boundary_iou()[:, 0].tolist() == [0, 0]
    assert counts.trimap_accuracy()[:, 0].tolist() == [1, 0]


def test_means_over_chosen_classes() -> None:
    values = np.array([[0.5, np.nan], [0.7, np.nan], [0.1, 0.4]])
    assert mean_of(values[:2].T) == pytest.approx([0.6, math.nan], nan_ok=True)
    assert mean_of(values.T) == pytest.approx([1.3 / 3, 0.4])


@pytest.mark.parametrize("widths", [(), (0,), (1.5,), (257,), (-1, 3)])
def test_widths_out_of_range(widths: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="1 to 256"):
        check_widths(widths)
    assert check_widths((10, 1, 3, 3)) == (1, 3, 10)


# Weighted F-measure


def test_edges_by_hand() -> None:
    """Sobel finds both columns beside a border, the 3 x 3 dilation one more on each side."""
    labels = padded(np.array([[0] * 5 + [1] * 5] * 7), 255)
    actual = edges(labels, labels != 255)[HALO:-HALO, HALO:-HALO]
    assert actual.sum(0).tolist() == [0, 0, 0, 7, 7, 7, 7, 0, 0, 0]


def test_no_edges_along_unlabelled_ground() -> None:
    """0 0 0 - - 1 1 1: no gradient is known at the hole."""
    labels = padded(np.array([[0, 0, 0, 255, 255, 1, 1, 1]] * 8), 255)
    assert not edges(labels, labels != 255).any()


def test_wfm_of_equal_disjoint_and_absent_edges() -> None:
    truth = np.zeros((20, 60), np.uint8)
    truth[:, 10:] = 1
    assert count(truth, truth).wfm() == pytest.approx(1)
    nothing = np.zeros_like(truth)
    assert count(nothing, truth).wfm() == pytest.approx(literal_wfm(*edge_maps(nothing, truth)), abs=1e-9)
    assert count(truth, nothing).wfm() == 0  # no edge in truth, some in the map
    assert math.isnan(count(nothing, nothing).wfm())


@pytest.mark.parametrize("false", [0.0, 3.0])
def test_a_map_that_misses_every_edge_in_full_has_no_wfm(false: float) -> None:
    counts = BoundaryCounts(classes=2, widths=(1,), edge_pixels=10, missed=10.0, false=false)
    assert counts.wfm() == 0


def test_false_edges_by_hand() -> None:
    """All true edges are found; a false line, three columns 0 to 2 px apart, lies 20 px off.

    Columns 8-11 are edge, so a false column at 31 is 20 px away and weighs 2 - 0.5 ** 4.
    """
    truth = np.zeros((10, 80), np.uint8)
    truth[:, 10:] = 1
    mapped = truth.copy()
    mapped[:, 33:] = 0
    counts = count(mapped, truth)
    assert counts.edge_pixels == 10 * 4
    assert counts.missed == 0
    weights = [2 - 0.5 ** (distance / 5) for distance in (20, 21, 22, 23)]
    assert counts.false == pytest.approx(10 * sum(weights))
    precision = 40 / (40 + counts.false)
    assert counts.wfm() == pytest.approx(2 * precision / (1 + precision))


def edge_maps(mapped: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges as the definition says, from scipy's Sobel filter: (map's, truth's, known)."""
    known = truth != 255
    usable = ndimage.binary_erosion(known, np.ones((3, 3)), border_value=0)
    both = []
    for values in (mapped, truth):
        values = np.where(known, values, 0).astype(float)
        gradient = np.hypot(ndimage.sobel(values, 0), ndimage.sobel(values, 1)) > 1e-9
        both.append(ndimage.binary_dilation(gradient & usable, np.ones((3, 3))) & known)
    return both[0], both[1], known


def literal_wfm(actual: np.ndarray, truth: np.ndarray, known: np.ndarray, ties: str = "worst") -> float:
    """Margolin's released MATLAB code line by line; `bwdist` pixel by pixel.

    `ties`: which of equally near edge pixels `bwdist` returns is its own affair.
    """
    points = np.argwhere(truth)
    error = np.abs(actual.astype(float) - truth)  # E
    distance, nearest_error = np.zeros(truth.shape), error.copy()
    for row, col in np.argwhere(~truth):
        squared = ((points - (row, col)) ** 2).sum(1)
        near = points[squared == squared.min()]
        distance[row, col] = math.sqrt(squared.min())
        errors = [error[tuple(point)] for point in near]
        nearest_error[row, col] = max(errors) if ties == "worst" else errors[0]  # Et(~GT) = Et(IDXT(~GT))
    nearest_error[~known] = 0
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 5**2))  # fspecial('gaussian', 7, 5)
    smoothed = ndimage.correlate(nearest_error, kernel / kernel.sum(), mode="constant")  # imfilter
    least = np.where(truth & (smoothed < error), smoothed, error)  # MIN_E_EA
    importance = np.ones(truth.shape)
    importance[~truth] = 2 - np.exp(math.log(1 - 0.5) / 5 * distance[~truth])  # B
    weighted = least * importance  # Ew
    hits = truth.sum() - weighted[truth].sum()  # TPw
    false = weighted[~truth & known].sum()  # FPw
    recall = 1 - weighted[truth].mean()
    precision = hits / (np.spacing(1) + hits + false)
    return 2 * recall * precision / (np.spacing(1) + recall + precision)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 4])
def test_wfm_agrees_with_the_released_code(seed: int, classes: int) -> None:
    mapped, truth = random_blobs(seed, classes, 40, 50)
    actual, true_edges, known = edge_maps(mapped, truth)
    assert 0.05 < true_edges.mean() < 0.8
    score = count(mapped, truth, classes).wfm()
    assert score == pytest.approx(literal_wfm(actual, true_edges, known), abs=1e-9)
    assert score == pytest.approx(literal_wfm(actual, true_edges, known, ties="first"), abs=0.02)


def test_far_false_edges_weigh_two() -> None:
    """Beyond 128 px the weight is 2 in full; the formula gives 2 - 2e-8 there."""
    truth = np.zeros((6, 400), np.uint8)
    truth[:, 10:] = 1
    mapped = truth.copy()
    mapped[:, 300:] = 0
    whole, cut = count(mapped, truth), count(mapped, truth, block=64)
    assert whole.false == cut.false == 2 * 6 * 4
    actual, true_edges, known = edge_maps(mapped, truth)
    # scipy's Sobel takes the image on beyond its edge, so that edges have the same four columns in all rows
    assert whole.wfm() == pytest.approx(literal_wfm(actual, true_edges, known), abs=1e-7)


@pytest.mark.parametrize("distance", [7, 40, 127])
def test_false_edges_see_edges_of_other_blocks(distance: int) -> None:
    """A false edge begins `distance` px from the last column of a true one, column 11."""
    truth = np.zeros((6, 200), np.uint8)
    truth[:, 10:] = 1
    mapped = truth.copy()
    mapped[:, 11 + distance + 2 :] = 0
    weights = [2 - 0.5 ** (far / 5) if far <= 128 else 2 for far in range(distance, distance + 4)]
    for block in (0, 16, 23):
        assert count(mapped, truth, block=block).false == pytest.approx(6 * sum(weights), rel=1e-12)


# Any cut


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16), height=st.integers(1, 90), width=st.integers(1, 90), block=st.integers(7, 100)
)
def test_blocks_change_nothing(seed: int, height: int, width: int, block: int) -> None:
    mapped, truth = random_blobs(seed, 3, height, width)
    whole, cut = (count(mapped, truth, 3, (1, 3, 10), size) for size in (0, block))
    assert as_numbers(cut) == pytest.approx(as_numbers(whole), rel=1e-12)


def test_turning_and_flipping_changes_nothing() -> None:
    mapped, truth = random_blobs(3, 3, 64, 80)
    whole = as_numbers(count(mapped, truth, 3))
    for turn in range(4):
        turned = [np.rot90(values, turn) for values in (mapped, truth)]
        assert as_numbers(count(*turned, 3)) == pytest.approx(whole)
        assert as_numbers(count(*(values[:, ::-1] for values in turned), 3)) == pytest.approx(whole)


def test_counts_of_maps_add_up() -> None:
    first, second = (count(*random_blobs(seed, 3, 40, 40), 3) for seed in (1, 2))
    together = [a + b for a, b in zip(as_numbers(first), as_numbers(second), strict=True)]
    first.merge(second)
    assert as_numbers(first) == pytest.approx(together)


# Eroded labels


def test_near_border_by_hand() -> None:
    """Around one pixel of class 1, within 2 px: a disc of 13 px, itself among them; a hole has no border."""
    labels = np.zeros((9, 9), np.uint8)
    labels[4, 4] = 1
    labels[0, :] = 255
    near = near_border(labels, 2)
    assert near.sum() == 13
    assert near[4, 6]
    assert not near[5, 6]
    assert not near[1].any()


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_near_border_is_euclidean(radius: int) -> None:
    _, labels = random_blobs(4, 3, 50, 60)
    near = np.zeros(labels.shape, bool)
    for value in range(3):
        other = (labels != value) & (labels != 255)
        near |= (labels == value) & (ndimage.distance_transform_edt(~other) <= radius)
    assert (near_border(labels, radius) == near).all()
