import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, gaussian_states, pick, random_state
from matplotlib.figure import Figure

import jaxcond as jc
from jaxcond import indicators, plotting

WIDTH, NUM = 4, 40
# Of full states, lifted or not: products of a few numbers each, but for the trajectory's accuracy.
RTOL = 1e-10
ENERGY, BRACKET, COUNTS, ANGLES = range(4)


@pytest.fixture(scope="module")
def rising():
    """A trajectory whose energy is negative at first."""
    states = gaussian_states(1, 64, WIDTH, WIDTH)
    lowest = pick(states, int(jnp.argmin(jax.vmap(jc.energy)(states))))
    return jc.trajectory(lowest, closeness=1e-4)


@pytest.fixture(scope="module")
def panel(rising):
    return plotting.trajectory_panel(rising, num=NUM)


@pytest.fixture(scope="module")
def times(rising):
    return rising.spread(NUM)


@pytest.fixture(scope="module")
def states(rising, times):
    return rising(times)


def curve(axes, label):
    """The data of the one line whose label starts so."""
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(label)]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def relative_left(trajectory):
    return np.asarray(trajectory.time_left(trajectory.spread(NUM)) / trajectory.blowup.time)


def test_a_panel_has_four_labelled_views_at_column_width(panel, rising):
    assert isinstance(panel, Figure)
    assert len(panel.axes) == 4
    assert panel.get_figwidth() == pytest.approx(3.4)
    for axes, letter in zip(panel.axes, "abcd", strict=True):
        assert axes.get_ylabel()
        assert letter in [text.get_text() for text in axes.texts]
        assert len(axes.get_legend().get_texts()) >= 2
        # Time runs to the right, towards the blow-up.
        assert axes.get_xscale() == "log"
        assert axes.get_xlim() == pytest.approx((1.0, relative_left(rising).min()))
    # One axis of times for all four.
    assert "relative time left" in panel.axes[-1].get_xlabel()
    title = panel.get_suptitle()
    assert f"width {WIDTH} × {WIDTH}" in title
    assert f"{float(rising.blowup.time):.6g}" in title
    file = io.BytesIO()
    panel.savefig(file, format="png")
    assert len(file.getvalue()) > 10_000


def test_the_energy_is_that_of_the_states(panel, rising, states):
    expected = np.asarray(jax.vmap(jc.energy)(states))
    positive = expected > 0
    assert 0 < positive.sum() < NUM
    left, energy = curve(panel.axes[ENERGY], "energy")
    np.testing.assert_allclose(left, relative_left(rising)[positive], rtol=4 * EPS)
    np.testing.assert_allclose(energy, expected[positive], rtol=RTOL)
    labels = [text.get_text() for text in panel.axes[ENERGY].get_legend().get_texts()]
    assert r"$E \leq 0$" in labels


def test_the_energy_lies_between_its_bounds(panel, rising):
    left, energy = curve(panel.axes[ENERGY], "energy")
    for label, sign in (("above", 1), ("below", -1)):
        at, bound = curve(panel.axes[ENERGY], label)
        shown = energy[np.isin(left, at)]
        # Both begin at a point of the trajectory, from half of the blow-up time on.
        assert at[0] <= 0.5
        assert bound[0] == pytest.approx(shown[0])
        with np.errstate(invalid="ignore"):
            gap = sign * (bound - shown) / shown
        assert np.all((gap > -1e-6) | np.isnan(gap))
        assert np.sum(gap > 1e-3) >= 2
    # By the equation of Theorem 1, from the first point on.
    time, first = float(rising.blowup.time), at[0]
    elapsed = (first - at[:3]) * time
    expected = (shown[0] ** (-1 / 3) - elapsed) ** -3
    np.testing.assert_allclose(bound[:3], expected, rtol=RTOL)


def test_the_upper_bound_is_that_of_theorem_2(panel, rising, times):
    at, bound = curve(panel.axes[ENERGY], "above")
    first = NUM - at.size
    growth, energy = rising.growth(times)[first], rising.energy(times)[first]
    elapsed = times[first:] - times[first]
    expected = jax.vmap(jc.bounds.theorem_2_energy, (None, 0, None))(energy, elapsed, growth)
    # Past its own blow-up the bound is infinite, and not drawn.
    drawn = np.isfinite(bound)
    assert drawn.sum() >= 2
    np.testing.assert_array_equal(drawn, np.isfinite(expected))
    np.testing.assert_allclose(bound[drawn], expected[drawn], rtol=RTOL)


def test_the_gaps_are_those_of_the_bracket(panel, rising, states, times):
    time = float(rising.blowup.time)
    lower, upper = (np.asarray(bound) for bound in jax.vmap(jc.bracket)(states))
    remaining = np.asarray(rising.time_left(times))
    theorem_2 = np.asarray(rising.theorem_bounds(times)[0] - times)
    for label, bound in (
        ("$E^{-1/3}$, above", upper),
        ("$R_F$", lower),
        ("$E^{-1/3}/C", theorem_2),
    ):
        left, gap = curve(panel.axes[BRACKET], label)
        np.testing.assert_allclose(left, relative_left(rising), rtol=4 * EPS)
        shown = np.isfinite(gap)
        assert shown.sum() >= 3
        assert np.all(gap[shown] > 0)
        # Differences of numbers of the size of T*.
        expected = np.abs(bound - remaining) / time
        np.testing.assert_allclose(gap[shown], expected[shown], rtol=1e-6, atol=1e-13)
        # Hidden is only what the accuracy leaves open.
        assert np.all(~np.isfinite(expected[~shown]) | (expected[~shown] < 1e-12))


def test_the_shares_are_those_of_the_conditions(panel, states):
    stages = jax.vmap(jc.final_stage)(states)
    for number, condition in ((1, stages.first), (2, stages.second)):
        label = f"condition {number} (of {condition.total})"
        _, share = curve(panel.axes[COUNTS], label)
        np.testing.assert_allclose(share, condition.positive / condition.total)
    # Circles mark where each condition begins to hold for good.
    marks = [line for line in panel.axes[COUNTS].lines if line.get_marker() == "o"]
    assert len(marks) == 1
    begun = []
    for number in (1, 2):
        left, share = curve(panel.axes[COUNTS], f"condition {number}")
        begun.append(left[np.flatnonzero(share < 1)[-1] + 1])
    np.testing.assert_array_equal(marks[0].get_xdata(), begun)


def test_the_cosines_are_those_of_the_angles(panel, states):
    angles = jax.vmap(jc.angles)(states)
    for label, values in (
        (r"least $\cos\,\xi", angles.xi),
        (r"least $\cos\,\psi", angles.psi),
        (r"$\cos\,\zeta", angles.zeta),
    ):
        _, shown = curve(panel.axes[ANGLES], label)
        least = np.asarray(values).reshape(NUM, -1).min(axis=1)
        np.testing.assert_allclose(shown, least, rtol=1e-8, atol=1e-8)
    low, high = panel.axes[ANGLES].get_ylim()
    assert low < -1
    assert high > 1


def test_nothing_is_shaded_where_the_energy_is_positive(panel, rising, times):
    assert len(panel.axes[ENERGY].patches) == 1
    positive = np.flatnonzero(rising.energy(times) > 0)
    later = jc.trajectory(rising(times[positive[0]]), closeness=1e-4)
    assert len(later.plot().axes[ENERGY].patches) == 0


def test_no_legend_covers_a_line(panel):
    panel.draw_without_rendering()
    for axes in panel.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.y0 >= axes.get_window_extent().y1 - 1


def test_a_panel_of_strength_other_than_one(rising):
    # The flow of strength -2 is that of strength 1, with c reversed, twice as fast.
    initial = rising.initial
    state = jc.State(initial.a, initial.b, -initial.c, jnp.array([-2.0]))
    followed = jc.trajectory(state, closeness=1e-4)
    panel = plotting.trajectory_panel(followed, num=NUM)
    left, energy = curve(panel.axes[ENERGY], "energy")
    for label, sign in (("above", 1), ("below", -1)):
        at, bound = curve(panel.axes[ENERGY], label)
        with np.errstate(invalid="ignore"):
            gap = sign * (bound / energy[np.isin(left, at)] - 1)
        assert np.all((gap > -1e-6) | np.isnan(gap))
    _, gap = curve(panel.axes[BRACKET], "$R_F$")
    points = followed.spread(NUM)
    lower, _ = jax.vmap(jc.bracket)(followed(points))
    expected = (followed.time_left(points) - lower) / followed.blowup.time
    shown = np.isfinite(gap)
    np.testing.assert_allclose(gap[shown], expected[shown], rtol=1e-6, atol=1e-13)


def test_panels_need_one_trajectory_of_rank_1_with_a_blow_up(rising, key):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), rising)
    with pytest.raises(
        ValueError, match=r"single trajectory of rank 1, but its batch has shape \(2"
    ):
        plotting.trajectory_panel(batch)
    with pytest.raises(ValueError, match="its rank is 2"):
        plotting.trajectory_panel(jc.trajectory(random_state(key, 2, WIDTH, WIDTH)))
    unit = jnp.eye(WIDTH)[0]
    rest = jc.trajectory(jc.State.from_vectors(unit, jnp.outer(unit, unit), -unit))
    for path in (rest, jc.trajectory(rising.initial, max_pieces=3)):
        with pytest.raises(ValueError, match="needs a trajectory that comes close to a blow-up"):
            path.plot()


def condensed_rows(direction, signs, sizes):
    return np.asarray(signs)[:, None] * np.asarray(sizes)[:, None] * direction[None, :]


def image_of(figure):
    (image,) = figure.axes[0].images
    return image.get_array()


@pytest.fixture
def two_signs():
    """Rows along one direction, of either sign, with a little noise."""
    rng = np.random.default_rng(3)
    signs = np.array([1, -1, -1, 1, -1, 1, 1])
    rows = condensed_rows(rng.standard_normal(5), signs, rng.uniform(0.5, 2, signs.size))
    return signs, rows + 1e-3 * rng.standard_normal(rows.shape)


def test_a_similarity_map_has_labels_and_a_scale(two_signs):
    _, rows = two_signs
    figure = plotting.similarity_map(
        indicators.cosine_similarity(jnp.asarray(rows)), titles=["at the end"]
    )
    axes, bar = figure.axes
    assert axes.get_xlabel() == axes.get_ylabel() == "neuron, by leading eigenvector"
    assert bar.get_ylabel() == "cosine similarity"
    assert axes.get_title() == "at the end"
    (image,) = axes.images
    assert image.get_clim() == (-1, 1)
    # Neurons are counted from 1, each in the middle of its cell.
    assert tuple(image.get_extent()) == (0.5, 7.5, 7.5, 0.5)
    figure.savefig(io.BytesIO())


def test_condensed_neurons_show_as_two_blocks(two_signs):
    signs, rows = two_signs
    similarity = np.asarray(indicators.cosine_similarity(jnp.asarray(rows)))
    shown = image_of(plotting.similarity_map(similarity))
    # Either sign may come first.
    first = int(np.sum(shown[0] > 0))
    assert first in (np.sum(signs > 0), np.sum(signs < 0))
    blocks = np.where(np.arange(signs.size) < first, 1, -1)
    np.testing.assert_allclose(shown, np.outer(blocks, blocks), atol=1e-2)
    # The same numbers in another order.
    np.testing.assert_array_equal(np.sort(np.ravel(shown)), np.sort(np.ravel(similarity)))


def test_maps_before_and_after_have_the_order_of_the_last(two_signs):
    _, rows = two_signs
    before = np.asarray(indicators.cosine_similarity(jnp.asarray(rows[::-1] ** 2 - 1)))
    after = np.asarray(indicators.cosine_similarity(jnp.asarray(rows)))
    figure = plotting.similarity_map(before, after, titles=["before", "after"])
    first, last = (axes.images[0].get_array() for axes in figure.axes[:2])
    (expected,) = plotting.similarity_map(after).axes[0].images
    np.testing.assert_array_equal(last, expected.get_array())
    leading = np.linalg.eigh(after)[1][:, -1]
    orders = (np.argsort(leading), np.argsort(-leading))
    assert any(np.array_equal(first, before[np.ix_(order, order)]) for order in orders)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["before", "after"]
    with pytest.raises(ValueError, match="2 maps need as many titles, but got 1"):
        plotting.similarity_map(before, after, titles=["before"])
    with pytest.raises(ValueError, match=r"of one size, but are \[\(7, 7\), \(2, 2\)\]"):
        plotting.similarity_map(before, after[:2, :2])


def test_the_order_is_that_of_the_leading_eigenvector():
    rows = np.random.default_rng(4).standard_normal((6, 3))
    similarity = np.asarray(indicators.cosine_similarity(jnp.asarray(rows)))
    values, vectors = np.linalg.eigh(similarity)
    leading = vectors[:, np.argmax(values)]
    shown = image_of(plotting.similarity_map(similarity))
    candidates = (np.argsort(leading), np.argsort(-leading))
    assert any(np.array_equal(shown, similarity[np.ix_(order, order)]) for order in candidates)


def test_neurons_stay_in_place_unless_ordered(two_signs):
    _, rows = two_signs
    rows[2] = 0
    similarity = np.asarray(indicators.cosine_similarity(jnp.asarray(rows)))
    figure = plotting.similarity_map(similarity, ordered=False)
    shown = image_of(figure)
    np.testing.assert_array_equal(np.ma.filled(shown, math.nan), similarity)
    assert np.all(np.ma.getmaskarray(shown)[2])
    assert figure.axes[0].get_xlabel() == "neuron"
    assert figure.axes[0].get_title() == ""


def test_neurons_without_weights_come_last_and_are_hatched(two_signs):
    _, rows = two_signs
    rows[[0, 4]] = 0
    figure = plotting.similarity_map(indicators.cosine_similarity(jnp.asarray(rows)))
    shown = image_of(figure)
    known = np.arange(len(rows)) < len(rows) - 2
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown), np.outer(known, known))
    assert np.all(np.abs(shown.compressed()) > 0.99)
    patch = figure.axes[0].patch
    assert patch.get_hatch()
    # Grey, which is not a colour of the map.
    red, green, blue, _ = patch.get_facecolor()
    assert red == green == blue


def test_a_map_of_neurons_without_weights_is_all_masked():
    figure = plotting.similarity_map(indicators.cosine_similarity(jnp.zeros((3, 2))))
    assert np.all(np.ma.getmaskarray(image_of(figure)))
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("shape", [(3, 2), (4,), (2, 2, 2), (0, 0)])
def test_maps_need_a_square_matrix(shape):
    # Shapes that the annotations refuse are refused before, where types are checked.
    with pytest.raises((ValueError, TypeError)) as refused:
        plotting.similarity_map(np.zeros(shape))
    if refused.type is ValueError:
        assert str(shape) in str(refused.value)
