import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from helpers import EPS, from_reference

import jaxcond as jc
from jaxcond import Chain
from jaxcond._chain_bounds import chain_integral
from jaxcond.bounds import two_layer_flow

# What the quadrature and everything without a solver must reach.
ROUNDING = 16 * EPS
# What is asked of the solver; scipy and the closed forms must agree within it.
RTOL, TIGHT = 1e-10, 1e-12
WIDTH, BATCH = 5, 8


def solve(points, rtol=RTOL):
    """On the host; one compilation for each depth, since all batches have the same shapes."""
    return jax.tree.map(np.asarray, jc.blowup_times(points, rtol=rtol))


bracket = jax.jit(jc.bracket)
brackets = jax.jit(jax.vmap(jc.bracket))
energies_of = jax.jit(jax.vmap(jc.energy))
integrals = jax.jit(chain_integral)


def points_of(layers):
    """A batch of points with one output and one input direction."""
    return Chain([jnp.asarray(layer) for layer in layers])


def gaussian_layers(depth, seed=0):
    """Layers of a batch of random points, with energies of alternating sign."""
    rng = np.random.default_rng(seed)
    widths = [1, *[WIDTH] * (depth - 1), 1]
    shapes = [(BATCH, widths[i + 1], widths[i]) for i in range(depth)]
    layers = [rng.standard_normal(shape) for shape in shapes]
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    layers[0] *= np.sign(product) * np.where(np.arange(BATCH) % 2, -1, 1)[:, None, None]
    return layers


def aligned_layers(weights):
    """W_l = w_l u_l u_{l-1}^T with random unit vectors; `weights` of shape (BATCH, depth)."""
    rng = np.random.default_rng(0)
    depth = weights.shape[1]
    units = [np.ones(1), *rng.standard_normal((depth - 1, WIDTH)), np.ones(1)]
    units = [unit / np.linalg.norm(unit) for unit in units]
    return [weights[:, i, None, None] * np.outer(units[i + 1], units[i]) for i in range(depth)]


def integral_by_mpmath(squares):
    """The integral to 20 digits, in u = log x and cut where its scales change."""
    with mpmath.workdps(25):
        squares = [mpmath.mpf(float(square)) for square in squares]
        logs = sorted(mpmath.log(square) for square in squares if square)
        cuts = sorted(u + shift for u in logs for shift in (-20, -5, 0, 5, 20))

        def integrand(u):
            x = mpmath.exp(u)
            return x / mpmath.sqrt(mpmath.fprod(square + x for square in squares)) / 2

        return float(mpmath.quad(integrand, [cuts[0] - 200, *cuts, cuts[-1] + 200]))


def blowup_time_by_scipy(layers):
    """Direct integration of the layers, with products of NumPy, until E^(2/L) = 1e24."""
    shapes = [layer.shape for layer in layers]
    ends = np.cumsum([layer.size for layer in layers])[:-1]
    depth = len(layers)

    def parts(y):
        pieces = [part.reshape(s) for part, s in zip(np.split(y[:-1], ends), shapes, strict=True)]
        right = [np.ones((1, 1))]
        for layer in pieces:
            right.append(layer @ right[-1])
        left = [np.ones((1, 1))]
        for layer in pieces[::-1]:
            left.append(left[-1] @ layer)
        gradient = [left[depth - 1 - i].T @ right[i].T for i in range(depth)]
        return gradient, right[-1].item()

    def field(_, y):
        # In units of the time that the norm takes, so that t - t0 keeps its digits.
        speed = (y[:-1] @ y[:-1]) ** (1 - depth / 2)
        gradient, _ = parts(y)
        return speed * np.concatenate([*(part.ravel() for part in gradient), [1.0]])

    def large(_, y):
        return max(parts(y)[1], 0) ** (2 / depth) - 1e24

    large.terminal = True
    start = np.concatenate([*(layer.ravel() for layer in layers), [0.0]])
    run = scipy.integrate.solve_ivp(
        field, (0, 1e9), start, "DOP853", rtol=1e-13, atol=1e-16, events=large
    )
    assert run.status == 1
    # What is left is E^{2/L - 1} / (L - 2), which at depth 3 is 3e-13 of what elapsed.
    return run.y[-1, -1] + parts(run.y[:, -1])[1] ** (2 / depth - 1) / (depth - 2)


def test_chain_integral_at_depth_3_is_carlson_rf():
    squares = 10 ** np.random.default_rng(0).uniform(-6, 6, (400, 3))
    squares[:3] = [(1e-12, 1e-12, 1), (1e-12, 1, 1), (1e-120, 1e-90, 1e-70)]
    squares[200:, 1] = 0
    np.testing.assert_allclose(
        integrals(jnp.asarray(squares)), jc.bounds.carlson_rf(*squares.T), rtol=ROUNDING
    )


@pytest.mark.parametrize("depth", [4, 5])
def test_chain_integral_agrees_with_mpmath(depth):
    squares = 10 ** np.random.default_rng(depth).uniform(-6, 6, (3, depth))
    squares[1] = np.geomspace(1e-12, 1, depth)
    squares[2, 1] = 0
    expected = [integral_by_mpmath(row) for row in squares]
    np.testing.assert_allclose(integrals(jnp.asarray(squares)), expected, rtol=ROUNDING)


def test_chain_integral_special_values():
    special = jnp.array([[0, 2, 0, 1], [1, -2, 3, 1], [1, 2, jnp.nan, 1], [1e-80] * 4])
    times = integrals(special)
    assert times[0] == jnp.inf
    assert np.all(np.isnan(times[1:3]))
    assert float(times[3]) == pytest.approx(1e80 / 2, rel=ROUNDING)
    single = np.array([[1e-12, 1e-12, 3e12, 0]], np.float32)
    found = integrals(jnp.asarray(single))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, integral_by_mpmath(single[0]), rtol=16 * 2.0**-23)


def test_bracket_of_balanced_aligned_layers_is_closed():
    """T* = w^{2-L}/(L-2) from both sides; where E < 0 the same from below only."""
    weights = np.linspace(0.4, 2, BATCH)[:, None] * np.ones(4)
    weights[1::2, 0] *= -1
    lower, upper = brackets(points_of(aligned_layers(weights)))
    np.testing.assert_allclose(lower, weights[:, 1] ** -2 / 2, rtol=ROUNDING)
    np.testing.assert_allclose(upper[::2], lower[::2], rtol=ROUNDING)
    assert np.all(upper[1::2] == jnp.inf)


def test_bracket_is_above_the_mean_and_scales_with_the_target():
    rng = np.random.default_rng(3)
    shapes = ((3, 2), (4, 3), (3, 4), (2, 3))
    layers = tuple(rng.standard_normal(shape) for shape in shapes)
    target = rng.standard_normal((2, 2))
    energy = np.sum(np.linalg.multi_dot(layers[::-1]) * target)
    energy, target = abs(energy), target * np.sign(energy)
    lower, upper = bracket(Chain(layers, target))
    norms = [np.sum(layer**2) for layer in layers]
    strength = np.linalg.svd(target)[1][0]
    assert float(lower) == pytest.approx(integral_by_mpmath(norms) / strength, rel=ROUNDING)
    assert float(lower) > 1 / (2 * strength * np.mean(norms))
    assert float(upper) == pytest.approx(sum(norms) / (8 * energy), rel=ROUNDING)
    far = bracket(Chain(tuple(1e100 * layer for layer in layers), 1e-200 * target))
    np.testing.assert_allclose(far, (lower, upper), rtol=4 * ROUNDING)


def test_bracket_of_what_never_moves_is_infinite():
    layers = gaussian_layers(4)
    layers[1][:2] = 0
    layers[2][1:3] = 0
    layers[0][3, 0] = np.nan
    lower, upper = brackets(points_of(layers))
    assert np.isfinite(lower[0])
    assert np.isfinite(lower[2])
    assert lower[1] == jnp.inf
    assert np.all(upper[:3] == jnp.inf)
    assert jnp.isnan(lower[3])
    assert jnp.isnan(upper[3])
    assert bracket(Chain((np.ones((1, 1)),) * 3, np.zeros((1, 1)))) == (jnp.inf, jnp.inf)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_random_layers_converge_within_the_error_and_the_bracket(depth):
    layers = gaussian_layers(depth)
    points = points_of(layers)
    energies = np.asarray(energies_of(points))
    assert np.all(energies[::2] > 0)
    assert np.all(energies[1::2] < 0)
    found, tight = solve(points), solve(points, TIGHT)
    np.testing.assert_array_equal(found.status, jc.Status.CONVERGED)
    np.testing.assert_array_equal(tight.status, jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time, tight.time, rtol=RTOL)
    error = found.error + tight.error
    assert np.all(np.abs(found.time - tight.time) <= error)
    assert np.all(found.error <= RTOL * found.time)
    assert np.all(found.upper - found.lower <= 1.0001 * RTOL * found.time)
    assert np.all(found.num_steps < 400)
    lower, upper = map(np.asarray, brackets(points))
    assert np.all(lower < tight.time)
    assert np.all(tight.time < upper)
    assert np.all(found.lower - error <= tight.time)
    assert np.all(tight.time <= found.upper + error)


@pytest.mark.parametrize("depth", [4, 5])
def test_against_scipy(depth):
    layers = gaussian_layers(depth)
    found = solve(points_of(layers))
    expected = [blowup_time_by_scipy([layer[i] for layer in layers]) for i in range(2)]
    np.testing.assert_allclose(found.time[:2], expected, rtol=RTOL)


def test_depth_3_is_the_state():
    """Of one output exactly; for a target that is not diagonal, to the rounding of its vectors."""
    chains = points_of(gaussian_layers(3))
    first, middle, last = chains.layers
    states = jc.State.from_vectors(last[:, 0], middle, first[:, :, 0])
    found, known = jc.blowup_times(chains), jc.blowup_times(states)
    for name in ("time", "lower", "upper", "error", "status"):
        np.testing.assert_array_equal(getattr(found, name), getattr(known, name))
    np.testing.assert_allclose(brackets(chains), jax.vmap(jc.bracket)(states), rtol=ROUNDING)
    chain = jax.tree.map(lambda leaf: leaf[0], chains)
    time = jc.blowup_time(jax.tree.map(lambda leaf: leaf[0], states)).time
    assert jc.blowup_time(chain).time == time
    # Three outputs, of which the target sees one combination.
    left = np.array([[2.0], [-1], [2]]) / 3
    turned = Chain((*chain.layers[:2], left @ chain.layers[2]), left)
    assert float(jc.blowup_time(turned).time) == pytest.approx(float(time), rel=RTOL)


def test_depth_3_and_rank_2_against_the_reference_table(reference):
    entry = next(entry for entry in reference if len(entry["a"]) == 2)
    state = from_reference(entry)
    point = Chain.from_state(state)
    assert float(jc.energy(point)) == pytest.approx(float(jc.energy(state)), rel=1e-13)
    field, expected = jc.vector_field(point), jc.vector_field(state)
    for ours, other in zip(field.layers, (expected.c.T, expected.b, expected.a), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(field.target, 0)
    found = jc.blowup_time(point)
    assert int(found.status) == jc.Status.CONVERGED
    time = float(entry["blowup_time"])
    assert float(found.time) == pytest.approx(time, rel=RTOL)
    assert abs(float(found.time) - time) <= float(found.error)


@pytest.mark.parametrize("depth", [4, 5])
def test_scalar_chains_in_closed_form(depth):
    """Aligned layers of equal squares, T* = w^{2-L}/(L-2), and of unequal ones, by mpmath."""
    weights = np.random.default_rng(depth).uniform(0.3, 2, (BATCH, depth))
    weights[:4] = weights[:4, :1]
    weights[4] *= np.geomspace(1e-3, 1, depth)
    weights[5, 0] = 0
    weights[6, :2] *= -1
    weights[7, 0] *= -1
    found = solve(points_of(aligned_layers(weights)))
    equal = weights[:4, 0] ** (2 - depth) / (depth - 2)
    expected = [*equal, *(integral_by_mpmath(row**2) for row in weights[4:])]
    # From negative energy to the turning point at which the smallest layer vanishes, and on.
    shifted = weights[7] ** 2 - np.min(weights[7] ** 2)
    expected[7] = 2 * integral_by_mpmath(shifted) - expected[7]
    np.testing.assert_allclose(jc.bounds.aligned_blowup_time(*weights.T), expected, rtol=1e-13)
    np.testing.assert_array_equal(found.status, jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time, expected, rtol=RTOL)
    assert np.all(np.abs(found.time - np.array(expected)) <= found.error)


@pytest.mark.parametrize("factor", [1e-100, 0.3, 1e100])
def test_time_is_homogeneous(factor):
    layers = gaussian_layers(4)
    found = solve(points_of(layers), TIGHT)
    scaled = solve(points_of([factor * layer for layer in layers]), TIGHT)
    np.testing.assert_array_equal(scaled.status, jc.Status.CONVERGED)
    for name in ("time", "lower", "upper"):
        ours, expected = getattr(scaled, name) * factor, getattr(found, name) / factor
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_every_outcome_in_one_batch():
    """Resting, invalid and unrepresentable points beside solvable ones: each as if alone."""
    layers = gaussian_layers(4)
    usable = solve(points_of(layers))
    layers[0][1, 2] = np.nan
    layers[3][2, 0, 1] = np.inf
    layers[1][3], layers[2][3] = 0, 0
    for layer in layers:
        layer[4] = 0
        layer[5] *= 1e200
    layers[1][6] = 0
    found = solve(points_of(layers))
    expected = [jc.Status.CONVERGED] * BATCH
    expected[1] = expected[2] = jc.Status.INVALID_INPUT
    expected[3] = expected[4] = jc.Status.NO_BLOW_UP
    # T* is about 1e-401.
    expected[5] = jc.Status.NOT_CONVERGED
    np.testing.assert_array_equal(found.status, expected)
    assert np.all(np.isnan(found.time[1:3]))
    assert np.all(np.isinf(found.time[3:5]))
    for i in (0, 7):
        assert float(found.time[i]) == pytest.approx(float(usable.time[i]), rel=1e-13)


def test_batches_of_every_depth():
    """A status for each chain, as under `vmap`; two layers never blow up."""
    for depth in (2, 4):
        layers = gaussian_layers(depth)
        layers[0][1, 2] = np.nan
        for layer in layers:
            layer[2] = 0
        # Comes to rest, with entries whose products are rounded.
        u, t = np.full((WIDTH, 1), 3.0), round(0.1 * 2**40) / 2**40
        rest = [7 * t * u, *[t * u @ u.T] * (depth - 2), -7 * t * u.T]
        for layer, resting in zip(layers, rest, strict=True):
            layer[3] = resting
        counts = []
        found = jc.blowup_times(points_of(layers), progress=counts.append)
        assert sum(counts) == BATCH
        usual = jc.Status.NO_BLOW_UP if depth == 2 else jc.Status.CONVERGED
        expected = np.full(BATCH, usual)
        expected[1] = jc.Status.INVALID_INPUT
        expected[2] = expected[3] = jc.Status.NO_BLOW_UP
        np.testing.assert_array_equal(found.status, expected)
        assert np.all((found.time == np.inf) == (expected == jc.Status.NO_BLOW_UP))
        traced = jax.jit(jax.vmap(jc.blowup_time))(points_of(layers))
        # There the proof by exact arithmetic is not to be had.
        expected[3] = traced.status[3]
        assert expected[3] in (jc.Status.NO_BLOW_UP, jc.Status.ILL_CONDITIONED)
        np.testing.assert_array_equal(traced.status, expected)
        np.testing.assert_allclose(found.time[4:], traced.time[4:], rtol=RTOL)


def test_a_target_of_two_singular_values():
    """The same flow in their vectors."""
    rng = np.random.default_rng(5)
    shapes = ((3, 2), (3, 3), (3, 3), (2, 3))
    layers = [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]
    target = jnp.asarray(rng.standard_normal((2, 2)))
    left, strength, right = np.linalg.svd(target, full_matrices=False)
    small = [layers[0] @ right.T, *layers[1:3], left.T @ layers[3]]
    pair = [Chain(layers, target), Chain(small, np.diag(strength))]
    found = [jc.blowup_time(chain) for chain in pair]
    assert [int(result.status) for result in found] == [jc.Status.CONVERGED] * 2
    assert float(found[0].time) == pytest.approx(float(found[1].time), rel=RTOL)
    np.testing.assert_allclose(*(jc.bracket(chain) for chain in pair), rtol=1e-12)
    assert float(jc.energy(pair[0])) == pytest.approx(float(jc.energy(pair[1])), rel=1e-12)


def test_conserved_matrices_do_not_move():
    chain = jax.tree.map(lambda leaf: leaf[0], points_of(gaussian_layers(4)))
    values, rates = jax.jvp(jc.conserved, (chain,), (jc.vector_field(chain),))
    assert [value.shape for value in values] == [(WIDTH, WIDTH)] * 3
    for value, rate in zip(values, rates, strict=True):
        np.testing.assert_allclose(rate, 0, atol=64 * EPS * np.max(np.abs(value)))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_an_empty_batch(depth):
    empty = jax.tree.map(lambda leaf: leaf[:0], points_of(gaussian_layers(depth)))
    assert jc.blowup_times(empty).time.shape == (0,)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_ensemble_of_chains(depth):
    """Drawn where they are solved: each by its index alone, and as if they were given."""
    ensemble = jc.GaussianChain((1, *[WIDTH] * (depth - 1), 1), 0.5)
    key = jax.random.key(3)
    chains = jax.vmap(lambda i: ensemble.sample(key=jc.sample_key(key, i)))(jnp.arange(BATCH))
    assert chains.widths == ensemble.widths
    counts = []
    samples = ensemble.draws(BATCH, key=key)
    found = jc.blowup_times(samples, progress=counts.append)
    assert sum(counts) == len(samples) == BATCH
    if depth == 2:
        np.testing.assert_array_equal(found.status, jc.Status.NO_BLOW_UP)
        return
    np.testing.assert_array_equal(found.status, jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time, solve(chains).time, rtol=RTOL)
    if depth == 3:
        part = jc.blowup_times(samples[2:4])
        np.testing.assert_allclose(part.time, found.time[2:4], rtol=RTOL)


def test_law_of_an_ensemble_of_chains():
    scales = (0.5, jnp.asarray(2.0), 0.0)
    ensemble = jc.GaussianChain((3, 400, 200, 2), scales, np.ones((2, 3)))
    chain = ensemble.sample(key=jax.random.key(0), dtype=jnp.dtype("float32"))
    assert chain.dtype == jnp.float32
    assert [layer.shape for layer in chain.layers] == [(400, 3), (200, 400), (2, 200)]
    for layer, scale in zip(chain.layers, scales, strict=True):
        assert float(jnp.std(layer)) == pytest.approx(float(scale), rel=5 / layer.size**0.5)
    for arguments, message in (
        (((1, 1),), "at least 3 widths"),
        (((1, 2.5, 1),), "`widths` must be a positive whole number, but is 2.5"),
        (((1, 2, 1), (1.0, 1.0, 1.0)), "must be one value or 2"),
        (((1, 2, 1), -1.0), "`scales` must be finite and not negative"),
        (((3, 2, 1),), r"shape \(n_L, n_0\) = \(1, 3\), but has \(1, 1\)"),
        (((3, 2, 1), 1.0, np.ones((3, 1))), r"= \(1, 3\), but has \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.GaussianChain(*arguments)
    with pytest.raises(ValueError, match="positive number of samples"):
        jc.GaussianChain((1, 2, 1)).draws(0, key=jax.random.key(0))


@pytest.mark.slow
def test_gradient():
    """T* is homogeneous of degree 2 - L, and falls by one in a unit of time."""
    chain = Chain([jnp.array([[x]]) for x in (0.7, 1.3, -0.9, -1.1)])
    gradient = jax.grad(lambda chain: jc.blowup_time(chain, jc.Direct(max_steps=256)).time)(chain)
    inner = functools.partial(jax.tree.map, jnp.vdot)
    time = float(jc.bounds.aligned_blowup_time(0.7, 1.3, -0.9, -1.1))
    along, onward = (inner(gradient.layers, x.layers) for x in (chain, jc.vector_field(chain)))
    assert float(sum(along)) == pytest.approx(-2 * time, rel=1e-8)
    assert float(sum(onward)) == pytest.approx(-1, rel=1e-8)


def test_too_few_steps_say_so():
    """And a second method takes what the first cannot settle."""
    weights = np.random.default_rng(7).uniform(0.5, 2, (BATCH, 4))
    weights[:, 0] *= -1
    chains, exact = points_of(aligned_layers(weights)), jc.bounds.aligned_blowup_time(*weights.T)
    few = jc.Direct(max_steps=4)
    found = jc.blowup_times(chains, methods=[few])
    np.testing.assert_array_equal(found.status, jc.Status.NOT_CONVERGED)
    assert found.methods == ("direct, Dopri8",)
    assert np.all((found.lower > 0) & (found.lower <= exact))
    found = jc.blowup_times(chains, methods=[few, jc.Direct()])
    np.testing.assert_array_equal(found.status, jc.Status.CONVERGED)
    np.testing.assert_array_equal(found.stage, 1)
    np.testing.assert_allclose(found.time, exact, rtol=RTOL)


def test_two_layers_against_the_matrix_exponential():
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal((2, 3))
    times = np.array([-3.0, 0, 1e-3, 0.7, 0.999, 1.001, 4, 20])
    later_a, later_c = two_layer_flow(a, c, times)
    assert later_a.shape == (8, 3)
    for i, t in enumerate(times):
        expected = scipy.linalg.expm(t * np.array([[0.0, 1], [1, 0]])) @ np.stack([a, c])
        # What scipy's exponential is good for.
        tolerance = 1e-12 * np.max(np.abs(expected))
        np.testing.assert_allclose(later_a[i], expected[0], rtol=0, atol=tolerance)
        np.testing.assert_allclose(later_c[i], expected[1], rtol=0, atol=tolerance)
        single = two_layer_flow(a, c, t)
        np.testing.assert_allclose(single[0], later_a[i], rtol=ROUNDING)
    energy = 0.5 * (a @ a + c @ c) * np.sinh(2 * times) + a @ c * np.cosh(2 * times)
    along = Chain((later_c[:, :, None], later_a[:, None]))
    np.testing.assert_allclose(jax.vmap(jc.energy)(along), energy, rtol=1e-13)
    point = Chain((jnp.asarray(c)[:, None], jnp.asarray(a)[None]))
    first, last = jc.vector_field(point).layers
    np.testing.assert_allclose(last[0], c, rtol=ROUNDING)
    np.testing.assert_allclose(first[:, 0], a, rtol=ROUNDING)


def test_two_layers_grow_like_exp_t_and_never_blow_up():
    a, c = np.array([0.3, 1e-200, 1.0, -1.0]), np.array([0.5, 0, -1.0, -1.0])
    later = two_layer_flow(a, c, np.array([300.0, 301.0, 900.0]))[0]
    np.testing.assert_allclose(later[1, [0, 1, 3]] / later[0, [0, 1, 3]], np.e, rtol=1e-12)
    # Where a = -c the solution decays; at t = 900 only what is not representable is infinite.
    np.testing.assert_allclose(later[:2, 2], np.exp([-300.0, -301.0]), rtol=1e-12)
    assert later[2, 2] == 0
    assert float(later[2, 1]) == pytest.approx(float(mpmath.exp(900) * 5e-201), rel=1e-12)
    assert later[2, 0] == jnp.inf
    assert not np.any(np.isnan(later))
    backwards = two_layer_flow(a, -c, -np.array([300.0, 301.0, 900.0]))[0]
    np.testing.assert_allclose(backwards, later, rtol=1e-12)


def test_bad_input_is_refused():
    one, row, column = jnp.ones((1, 1)), jnp.ones((1, 3)), jnp.ones((3, 1))
    for layers in (
        (),
        (one,),
        (row, row),
        (jnp.ones(3), row),
        (jnp.ones((0, 1)), jnp.ones((1, 0))),
    ):
        with pytest.raises(ValueError, match="Argument `layers` must be"):
            Chain(layers)
    with pytest.raises(ValueError, match=r"n_L, n_0\) = \(3, 3\), but has \(1, 1\)"):
        Chain((row, one, column))
    with pytest.raises(ValueError, match=r"n_L, n_0\) = \(1, 1\), but has \(2, 2\)"):
        Chain((column, row), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"real floating, but are .*int"):
        Chain((jnp.ones((1, 1), int), one, one))
    with pytest.raises(ValueError, match="with the same leading axes"):
        Chain((jnp.ones((2, 3, 1)), jnp.ones((1, 1, 3))))
    four = Chain((one, one, one, one))
    for depth in (2, 3, 4):
        batch = points_of(gaussian_layers(depth))
        for function in (jc.energy, jc.vector_field, jc.conserved, jc.bracket, jc.blowup_time):
            with pytest.raises(ValueError, match=r"takes one chain.*batch by `jax\.vmap`"):
                function(batch)
    with pytest.raises(ValueError, match="chains with one batch axis"):
        jc.blowup_times(four)
    with pytest.raises(ValueError, match="`Series` takes at most 3 layers, but the chain has 4"):
        jc.blowup_time(four, jc.Series())
    with pytest.raises(ValueError, match="`Reduced` takes at most 3 layers"):
        jc.blowup_times(points_of(gaussian_layers(4)), methods=[jc.Direct(), jc.Reduced()])
    with pytest.raises(ValueError, match="Argument `rtol` must lie between"):
        jc.blowup_time(four, rtol=1e-17)
    with pytest.raises(ValueError, match="in float32 or float64, but the dtype is float16"):
        jc.blowup_time(jax.tree.map(lambda leaf: leaf.astype("float16"), four))
    with pytest.raises(ValueError, match="at least 3 weights, but got 2"):
        jc.bounds.aligned_blowup_time(1.0, 2.0)
    with pytest.raises(ValueError, match="two never blow up"):
        jc.certify(Chain((column, row)))
