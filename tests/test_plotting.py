import io
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, gaussian_states, pick, random_state
from matplotlib.figure import Figure

import jaxcond as jc
from jaxcond import plotting

WIDTH, NUM = 4, 12
# Of full states, lifted or not: products of a few numbers each, but for the trajectory's accuracy.
RTOL = 1e-10
ENERGY, BRACKET, COUNTS, ANGLES = range(4)


@pytest.fixture(scope="module")
def rising():
    """A trajectory whose energy is negative at first."""
    states = gaussian_states(1, 64, WIDTH, WIDTH)
    lowest = pick(states, int(jnp.argmin(jax.vmap(jc.energy)(states))))
    return jc.trajectory(lowest, num=NUM, closeness=1e-4)


@pytest.fixture(scope="module")
def panel(rising):
    return plotting.trajectory_panel(rising)


@pytest.fixture(scope="module")
def states(rising):
    return rising.states()


def along(trajectory):
    """All that has an axis of points."""
    t = trajectory
    parts = (t.times, t.time_left, t.status, t.drift, t.truncation)
    return (*parts, t.reduced.a, t.reduced.b, t.reduced.c, t.reduced.strength)


def points_of(trajectory, index):
    """Some points of a trajectory, in the order given."""
    chosen = tuple(x[jnp.asarray(index)] for x in along(trajectory))
    return eqx.tree_at(along, trajectory, chosen)


def curve(axes, label):
    """The data of the one line whose label starts so."""
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(label)]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def relative_left(trajectory):
    return np.asarray(trajectory.time_left / trajectory.blow_up.time)


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
    title = panel.axes[0].get_title()
    assert f"width {WIDTH} × {WIDTH}" in title
    assert f"{float(rising.blow_up.time):.6g}" in title
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
    for label, sign in (("upper", 1), ("lower", -1)):
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
    time, first = float(rising.blow_up.time), at[0]
    elapsed = (first - at[:3]) * time
    expected = (shown[0] ** (-1 / 3) - elapsed) ** -3
    np.testing.assert_allclose(bound[:3], expected, rtol=RTOL)


def test_the_upper_bound_is_that_of_theorem_2(panel, rising):
    at, bound = curve(panel.axes[ENERGY], "upper")
    first = NUM - at.size
    growth = rising.growth()[first]
    elapsed = rising.times[first:] - rising.times[first]
    expected = jax.vmap(jc.theorem_2_energy, (None, 0, None))(rising.energy[first], elapsed, growth)
    # Past its own blow-up the bound is infinite, and not drawn.
    drawn = np.isfinite(bound)
    assert drawn.sum() >= 2
    np.testing.assert_array_equal(drawn, np.isfinite(expected))
    np.testing.assert_allclose(bound[drawn], expected[drawn], rtol=RTOL)


def test_the_gaps_are_those_of_the_bracket(panel, rising, states):
    time = float(rising.blow_up.time)
    lower, upper = (np.asarray(bound) for bound in jax.vmap(jc.bracket)(states))
    remaining = np.asarray(rising.time_left)
    theorem_2 = np.asarray(rising.theorem_bounds()[0] - rising.times)
    for label, bound in (("$E^{-1/3}$ above", upper), ("$R_F$", lower), ("$E^{-1/3}/C", theorem_2)):
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
    assert len(marks) == 2
    left, share = curve(panel.axes[COUNTS], "condition 1")
    begun = left[np.flatnonzero(share < 1)[-1] + 1]
    assert float(marks[0].get_xdata()[0]) == begun


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


def test_a_panel_of_points_in_any_order_is_the_same(panel, rising):
    order = np.random.default_rng(5).permutation(NUM)
    mixed = plotting.trajectory_panel(points_of(rising, order))
    for one, other in zip(mixed.axes, panel.axes, strict=True):
        for line, expected in zip(one.lines, other.lines, strict=True):
            np.testing.assert_allclose(line.get_xydata(), expected.get_xydata(), rtol=RTOL)


def test_nothing_is_shaded_where_the_energy_is_positive(panel, rising):
    assert len(panel.axes[ENERGY].patches) == 1
    positive = np.flatnonzero(rising.energy > 0)
    later = plotting.trajectory_panel(points_of(rising, positive))
    assert len(later.axes[ENERGY].patches) == 0


def test_a_panel_of_strength_other_than_one(rising):
    # The flow of strength -2 is that of strength 1, with c reversed, twice as fast.
    initial = rising.initial
    state = jc.State(initial.a, initial.b, -initial.c, jnp.array([-2.0]))
    followed = jc.trajectory(state, num=NUM, closeness=1e-4)
    panel = plotting.trajectory_panel(followed)
    left, energy = curve(panel.axes[ENERGY], "energy")
    for label, sign in (("upper", 1), ("lower", -1)):
        at, bound = curve(panel.axes[ENERGY], label)
        with np.errstate(invalid="ignore"):
            gap = sign * (bound / energy[np.isin(left, at)] - 1)
        assert np.all((gap > -1e-6) | np.isnan(gap))
    _, gap = curve(panel.axes[BRACKET], "$R_F$")
    lower, _ = jax.vmap(jc.bracket)(followed.states())
    expected = (followed.time_left - lower) / followed.blow_up.time
    shown = np.isfinite(gap)
    np.testing.assert_allclose(gap[shown], expected[shown], rtol=1e-6, atol=1e-13)


def test_a_panel_of_negative_energy_only_is_drawn(rising):
    # The other sign of the strength is the other sign of the energy.
    later = points_of(rising, [2, 3])
    negative = eqx.tree_at(lambda t: t.reduced.strength, later, -later.reduced.strength)
    assert np.all(negative.energy < 0)
    figure = plotting.trajectory_panel(negative)
    left, _ = curve(figure.axes[ENERGY], "energy")
    assert left.size == 0
    figure.savefig(io.BytesIO())


def test_points_that_were_not_reached_are_left_out(rising):
    rows = [jnp.where(jnp.arange(NUM) < NUM - 1, x.T, jnp.nan).T for x in along(rising)]
    rows[2] = rising.status.at[-1].set(jc.PointStatus.BEYOND_BLOW_UP)
    unreached = plotting.trajectory_panel(eqx.tree_at(along, rising, tuple(rows)))
    without = plotting.trajectory_panel(points_of(rising, np.arange(NUM - 1)))
    for one, other in zip(unreached.axes, without.axes, strict=True):
        for line, expected in zip(one.lines, other.lines, strict=True):
            np.testing.assert_allclose(line.get_xydata(), expected.get_xydata(), rtol=RTOL)


def test_panels_need_one_trajectory_of_rank_1_and_two_points(rising, key):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), rising)
    with pytest.raises(ValueError, match=r"single one of rank 1, but its times have shape \(2, 12"):
        plotting.trajectory_panel(batch)
    higher = eqx.tree_at(lambda t: t.initial, rising, random_state(key, 2, WIDTH, WIDTH))
    with pytest.raises(ValueError, match="its rank is 2"):
        plotting.trajectory_panel(higher)
    endless = eqx.tree_at(lambda t: t.blow_up.time, rising, jnp.array(jnp.inf))
    for few in (points_of(rising, [3]), endless):
        with pytest.raises(ValueError, match="at least two points on the way to a blow-up"):
            plotting.trajectory_panel(few)


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
    figure = plotting.similarity_map(jc.cosine_similarity(jnp.asarray(rows)), title="at the end")
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
    similarity = np.asarray(jc.cosine_similarity(jnp.asarray(rows)))
    shown = image_of(plotting.similarity_map(similarity))
    # Either sign may come first.
    first = int(np.sum(shown[0] > 0))
    assert first in (np.sum(signs > 0), np.sum(signs < 0))
    blocks = np.where(np.arange(signs.size) < first, 1, -1)
    np.testing.assert_allclose(shown, np.outer(blocks, blocks), atol=1e-2)
    # The same numbers in another order.
    np.testing.assert_array_equal(np.sort(np.ravel(shown)), np.sort(np.ravel(similarity)))


def test_the_order_is_that_of_the_leading_eigenvector():
    rows = np.random.default_rng(4).standard_normal((6, 3))
    similarity = np.asarray(jc.cosine_similarity(jnp.asarray(rows)))
    values, vectors = np.linalg.eigh(similarity)
    leading = vectors[:, np.argmax(values)]
    shown = image_of(plotting.similarity_map(similarity))
    candidates = (np.argsort(leading), np.argsort(-leading))
    assert any(np.array_equal(shown, similarity[np.ix_(order, order)]) for order in candidates)


def test_neurons_stay_in_place_unless_ordered(two_signs):
    _, rows = two_signs
    rows[2] = 0
    similarity = np.asarray(jc.cosine_similarity(jnp.asarray(rows)))
    figure = plotting.similarity_map(similarity, ordered=False)
    shown = image_of(figure)
    np.testing.assert_array_equal(np.ma.filled(shown, math.nan), similarity)
    assert np.all(np.ma.getmaskarray(shown)[2])
    assert figure.axes[0].get_xlabel() == "neuron"
    assert figure.axes[0].get_title() == ""


def test_neurons_without_weights_come_last_and_are_hatched(two_signs):
    _, rows = two_signs
    rows[[0, 4]] = 0
    figure = plotting.similarity_map(jc.cosine_similarity(jnp.asarray(rows)))
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
    figure = plotting.similarity_map(jc.cosine_similarity(jnp.zeros((3, 2))))
    assert np.all(np.ma.getmaskarray(image_of(figure)))
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("shape", [(3, 2), (4,), (2, 2, 2), (0, 0)])
def test_maps_need_a_square_matrix(shape):
    # Shapes that the annotations refuse are refused before, where types are checked.
    with pytest.raises((ValueError, TypeError)) as refused:
        plotting.similarity_map(np.zeros(shape))
    if refused.type is ValueError:
        assert str(shape) in str(refused.value)
