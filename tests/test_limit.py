import numpy as np
import pytest
from helpers import EPS
from scipy.integrate import solve_ivp
from scipy.special import elliprf

import jaxcond as jc
from jaxcond.sampling import infinite_width_times

# Of the times: the tolerance that they are solved to.
RTOL = 1e-10
# The same element beside others: another program, a few units of rounding of a condition near 1.
REPRODUCED = 4e3 * EPS
# Of the integration that some times are compared with; its error adds up over the steps.
INTEGRATED = 1e-11
INFINITE_WIDTH = 1.167972771072370061114

ALIKE = (1.0, 1.0, 1.0, 1.0)
# Aspect and scales that lie ever further apart: 12, then 24 and 48, then 96 dimensions.
CASES = (
    ALIKE,
    (0.5, 2.0, 1.0, 0.7),
    (1.0, 1.0, 1e-4, 1.0),
    (1.0, 1e-6, 1.0, 1.0),
    (1.0, 1.0, 1e3, 1.0),
    (1e-3, 1.0, 1.0, 1.0),
    (2.0, 1e-8, 1e-8, 1.0),
    (1.0, 1e-8, 1.0, 1e-8),
    (1.0, 1e-15, 1.0, 1e-15),
    (1.0, 1e-30, 1.0, 1e-30),
)
WITHOUT_MIDDLE = ((1.0, 1.0, 0.0, 1.0), (3.0, 0.2, 0.0, 5.0), (1e-6, 1.0, 0.0, 1.0))
AT_REST = ((1.0, 0.0, 0.0, 1.0), (2.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 3.0, 0.0))
BEYOND = (1.0, 1e-100, 1.0, 1e-100)


def times(cases):
    aspect, scale_a, scale_b, scale_c = np.array(cases).T
    return infinite_width_times(aspect=aspect, scale_a=scale_a, scale_b=scale_b, scale_c=scale_c)


def transposed(case):
    aspect, scale_a, scale_b, scale_c = case
    return (1 / aspect, scale_c, scale_b, scale_a)


@pytest.fixture(scope="module")
def found():
    """All cases, solved together: programs are compiled for the lot."""
    cases = (*CASES, *WITHOUT_MIDDLE, *AT_REST, BEYOND)
    scaled = [(case[0], *(256.0 * s for s in case[1:])) for case in CASES]
    swapped = [transposed(case) for case in CASES]
    solved = times([*cases, *scaled, *swapped])
    columns = {
        name: np.asarray(getattr(solved, name)) for name in ("time", "error", "status", "stage")
    }
    ends = np.cumsum([len(cases), len(scaled)])
    parts = {name: np.split(column, ends) for name, column in columns.items()}
    return {
        label: {name: column[i] for name, column in parts.items()}
        for i, label in enumerate(("cases", "scaled", "swapped"))
    }


def plain_limit(aspect, scale_a, scale_b, scale_c, dim=72):
    r"""T* by integration of a'' = (A + 2|a|^2 + kappa) a in time that runs with the norms."""
    root = np.sqrt(aspect)
    b = scale_b * (np.eye(dim, k=1) + root * np.eye(dim, k=-1))
    a, c = np.zeros(dim), np.zeros(dim)
    a[0], c[0] = scale_a * root, scale_c
    kappa = c @ c - a @ a
    matrix = b @ b.T - np.outer(a, a) + kappa * np.eye(dim)
    largest = max(a[0], c[0], 2 * scale_b * max(1.0, root))

    def field(s, y):
        a, v = y[:dim], y[dim:-1]
        square = a @ a
        pace = 1 / np.sqrt(square + largest**2)
        return np.concatenate([v, matrix @ a + 2 * square * a, [1.0]]) * pace

    def close(s, y):
        return (y[:dim] @ y[dim:-1]) - (1e5 * largest) ** 3

    close.terminal = True
    start = np.concatenate([a, b @ c, [0.0]])
    solution = solve_ivp(
        field,
        (0, 1e3),
        start,
        "DOP853",
        events=close,
        rtol=1e-13,
        atol=1e-16 * min(start[start > 0]),
    )
    y = solution.y[:, -1]
    # From here the bracket is as narrow as 1e-10 of what is left.
    return y[-1] + (y[:dim] @ y[dim:-1]) ** (-1 / 3)


def test_the_limit_for_equal_scales(found):
    assert found["cases"]["stage"][0] == 0
    assert abs(found["cases"]["time"][0] / INFINITE_WIDTH - 1) < REPRODUCED


def test_every_case_converges(found):
    solved = found["cases"]
    count = len(CASES) + len(WITHOUT_MIDDLE)
    assert np.all(solved["status"][:count] == jc.Status.CONVERGED)
    assert np.all(solved["error"][:count] <= RTOL * solved["time"][:count])
    # More dimensions only where they are needed: the first alone, the last in the most.
    assert set(solved["stage"][: len(CASES)]) == {0, 2, 3}


@pytest.mark.parametrize("case", CASES[1:])
def test_times_are_those_of_plain_integration(found, case):
    index = CASES.index(case)
    # It is written for the smaller layer: with a far larger, the equation for a cancels.
    expected = plain_limit(*case)
    if case[1] * np.sqrt(case[0]) > case[3]:
        expected = plain_limit(*transposed(case)) / np.sqrt(case[0])
    got, error = found["cases"]["time"][index], found["cases"]["error"][index]
    assert abs(got - expected) <= error + INTEGRATED * expected


def test_without_middle_layer_it_is_an_elliptic_integral(found):
    aspect, scale_a, _, scale_c = np.array(WITHOUT_MIDDLE).T
    expected = elliprf(0, aspect * scale_a**2, scale_c**2)
    got = found["cases"]["time"][len(CASES) : len(CASES) + len(WITHOUT_MIDDLE)]
    np.testing.assert_allclose(got, expected, rtol=REPRODUCED)


def test_scales_divide_the_time(found):
    # By a power of two, which divides exactly.
    np.testing.assert_array_equal(
        256 * found["scaled"]["time"], found["cases"]["time"][: len(CASES)]
    )


def test_reading_the_network_from_the_other_end(found):
    aspect = np.array(CASES)[:, 0]
    here = found["cases"]["time"][: len(CASES)]
    error = found["cases"]["error"][: len(CASES)] + found["swapped"]["error"] / np.sqrt(aspect)
    gap = np.abs(found["swapped"]["time"] / np.sqrt(aspect) - here)
    assert np.all(gap <= error + REPRODUCED * here)


def test_states_at_rest_never_blow_up(found):
    rest = slice(len(CASES) + len(WITHOUT_MIDDLE), -1)
    assert np.all(found["cases"]["status"][rest] == jc.Status.NO_BLOW_UP)
    assert np.all(np.isinf(found["cases"]["time"][rest]))


def test_scales_too_far_apart_are_not_called_converged(found):
    assert found["cases"]["status"][-1] == jc.Status.NOT_CONVERGED
    assert found["cases"]["error"][-1] > RTOL * found["cases"]["time"][-1]


def test_arguments_broadcast(found):
    aspect, scale_c = np.array([1.0, 0.5]), np.array([[1.0], [0.7], [2.0]])
    solved = infinite_width_times(aspect=aspect, scale_a=2, scale_c=scale_c)
    assert solved.time.shape == solved.status.shape == solved.stage.shape == (3, 2)
    assert abs(solved.time[1, 1] / found["cases"]["time"][1] - 1) < REPRODUCED
    alone = infinite_width_times(aspect=0.5, scale_a=2, scale_c=2.0)
    assert alone.time.shape == ()
    assert abs(alone.time / solved.time[2, 1] - 1) < REPRODUCED
    assert infinite_width_times(scale_a=np.ones((3, 0))).time.shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aspect": 0.0}, "`aspect` must be finite and positive, but holds 0.0"),
        ({"aspect": np.array([1.0, -2.0])}, "`aspect` must be finite and positive, but holds -2.0"),
        ({"scale_a": -1.0}, "`scale_a` must be finite and not negative, but holds -1.0"),
        ({"scale_b": np.inf}, "`scale_b` must be finite and not negative, but holds inf"),
        ({"scale_c": np.array([[np.nan]])}, "`scale_c` must be finite and not negative"),
        ({"scale_a": np.ones(2), "scale_b": np.ones(3)}, r"scale_a \(2,\), scale_b \(3,\)"),
        ({"rtol": 1e-20}, "`rtol` must lie between"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        infinite_width_times(**arguments)
