import io
import math

import numpy as np
import pytest
from helpers import EPS
from matplotlib.colors import CenteredNorm, LogNorm, Normalize

from jaxcond import plotting

# Of edges that are found through logarithms.
EDGES = 8 * EPS
X, Y = np.array([1.0, 2.0, 4.0, 5.0]), np.array([-1.0, 0.0, 3.0])
VALUES = 10 + np.add.outer(Y, 2 * X)
LABELS = {"x_label": "aspect ratio", "y_label": "scale", "label": "rescaled time"}


def mapped(x=X, y=Y, values=VALUES, **options):
    return plotting.phase_map(x, y, values, **LABELS, **options)


def mesh_of(axes):
    return axes.collections[0]


def edges_of(axes):
    corners = mesh_of(axes).get_coordinates()
    return corners[0, :, 0], corners[:, 0, 1]


def lines_of(axes):
    """The contour lines, by level."""
    (contours,) = axes.collections[1:]
    return dict(zip(contours.levels, contours.get_paths(), strict=True))


def drawn(figure):
    """Drawing runs the layout, where warnings would come from."""
    figure.savefig(io.BytesIO())
    return figure


def test_a_map_has_labels_a_title_and_a_scale():
    axes, bar = drawn(mapped(title="width 200")).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("aspect ratio", "scale")
    assert bar.get_ylabel() == "rescaled time"
    assert axes.get_title() == "width 200"
    np.testing.assert_array_equal(mesh_of(axes).get_array(), VALUES)
    assert mesh_of(axes).get_clim() == (VALUES.min(), VALUES.max())


def test_edges_lie_half_way_between_neighbours():
    x, y = edges_of(mapped().axes[0])
    np.testing.assert_array_equal(x, [0.5, 1.5, 3.0, 4.5, 5.5])
    np.testing.assert_array_equal(y, [-1.5, -0.5, 1.5, 4.5])


def test_edges_on_a_logarithmic_axis_lie_half_way_in_the_logarithm():
    axes = drawn(mapped(x=[1.0, 4.0, 16.0, 100.0], log_x=True)).axes[0]
    np.testing.assert_allclose(edges_of(axes)[0], [0.5, 2, 8, 40, 250], rtol=EDGES)
    assert axes.get_xscale() == "log"
    assert axes.get_yscale() == "linear"
    np.testing.assert_allclose(axes.get_xlim(), (0.5, 250), rtol=EDGES)
    axes = drawn(mapped(y=[0.01, 0.1, 1.0], log_y=True)).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")


def test_decreasing_axes_are_drawn_increasing():
    axes = drawn(mapped(x=X[::-1], values=VALUES[:, ::-1])).axes[0]
    assert axes.get_xlim() == (0.5, 5.5)
    # The same point, the same value.
    corners, array = mesh_of(axes).get_coordinates(), mesh_of(axes).get_array()
    assert corners[0, 0, 0] == 5.5
    assert array[0, 0] == VALUES[0, -1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1)])
def test_a_single_row_or_column_is_drawn(shape):
    rows, columns = shape
    axes = drawn(mapped(X[:columns], Y[:rows], VALUES[:rows, :columns])).axes[0]
    x, y = edges_of(axes)
    assert (y.size, x.size) == (rows + 1, columns + 1)
    # One point alone fills a cell of width one around it.
    if columns == 1:
        np.testing.assert_array_equal(x, [0.5, 1.5])
    assert len(axes.collections) == 1


def test_cells_without_a_value_are_hatched_and_counted():
    values = VALUES.copy()
    values[0, 0], values[2, 3] = np.nan, np.inf
    axes = drawn(mapped(values=values, title="a title")).axes[0]
    assert axes.get_title() == "a title\n2 of 12 cells hatched: no value"
    np.testing.assert_array_equal(
        np.ma.getmaskarray(mesh_of(axes).get_array()), ~np.isfinite(values)
    )
    assert axes.patch.get_hatch()
    red, green, blue, _ = axes.patch.get_facecolor()
    assert red == green == blue
    assert mapped(values=values).axes[0].get_title() == "2 of 12 cells hatched: no value"


def test_values_over_decades_are_coloured_by_their_logarithm():
    factors = np.ones(VALUES.shape)
    for ratio, norm in ((99.0, Normalize), (101.0, LogNorm), (1e12, LogNorm)):
        values = factors.copy()
        values[1, 2] = ratio
        assert type(mesh_of(drawn(mapped(values=values)).axes[0]).norm) is norm
    values[0, 0] = 0
    assert type(mesh_of(drawn(mapped(values=values)).axes[0]).norm) is Normalize


def test_values_of_both_signs_are_coloured_about_zero():
    values = VALUES - VALUES.mean()
    mesh = mesh_of(drawn(mapped(values=values)).axes[0])
    assert isinstance(mesh.norm, CenteredNorm)
    low, high = mesh.get_clim()
    assert low == -high == -np.abs(values).max()


@pytest.mark.parametrize("value", [0.0, 1.0, -1e300, 1e-300])
def test_constant_values_are_drawn_without_contours(value):
    axes = drawn(mapped(values=np.full(VALUES.shape, value))).axes[0]
    assert len(axes.collections) == 1


def test_contours_are_where_the_values_are():
    axes = drawn(mapped()).axes[0]
    lines = lines_of(axes)
    assert len(lines) >= 3
    # The values are linear, and so is what lies between them.
    for level, path in lines.items():
        np.testing.assert_allclose(10 + 2 * path.vertices[:, 0] + path.vertices[:, 1], level)
    labels = [text for text in axes.texts if text.get_text()]
    assert {float(text.get_text()) for text in labels} <= set(lines)
    assert labels
    assert len(drawn(mapped(contours=False)).axes[0].collections) == 1


def test_contours_are_interpolated_as_the_axes_are():
    # A power law is linear in the logarithms: its contours are exact even on the coarsest grid.
    x, y = np.array([1e-2, 1.0, 1e3]), np.array([0.1, 10.0])
    values = np.multiply.outer(y**2, x)
    axes = drawn(mapped(x, y, values, log_x=True, log_y=True)).axes[0]
    for level, path in lines_of(axes).items():
        found = np.log(path.vertices[:, 0]) + 2 * np.log(path.vertices[:, 1])
        # Straight pieces between points eight times as dense, in data coordinates.
        np.testing.assert_allclose(found, math.log(level), atol=0.25)


def test_dark_contours_on_light_colours():
    axes = drawn(mapped()).axes[0]
    (contours,) = axes.collections[1:]
    shades = contours.get_edgecolors()[:, 0]
    assert shades[0] == 1
    assert shades[-1] < 0.2


def test_large_maps_are_pixels():
    x = np.arange(70.0)
    assert mesh_of(mapped(x, x, np.add.outer(x, x)).axes[0]).get_rasterized()
    assert not mesh_of(mapped().axes[0]).get_rasterized()


def test_several_maps_share_their_scale():
    figure = plotting.phase_maps(
        X,
        Y,
        {"infinite width": VALUES, "width 50": 2 * VALUES},
        differences={"difference": np.where(VALUES > 12, VALUES / VALUES.max(), np.nan)},
        **LABELS,
    )
    first, second, third, bar, other = drawn(figure).axes
    titles = [axes.get_title() for axes in (first, second, third)]
    hidden = np.sum(VALUES <= 12)
    assert titles == [
        "infinite width",
        "width 50",
        f"difference\n{hidden} of 12 cells hatched: no value",
    ]
    assert [axes.get_title("left").strip() for axes in (first, second, third)] == ["a", "b", "c"]
    for axes in (first, second):
        assert mesh_of(axes).get_clim() == (VALUES.min(), 2 * VALUES.max())
    # A scale of its own, about zero though all are positive.
    assert mesh_of(third).get_clim() == (-1, 1)
    assert (bar.get_ylabel(), other.get_ylabel()) == ("rescaled time", "relative difference")
    assert [axes.get_ylabel() for axes in (first, second, third)] == ["scale", "", ""]


def test_one_map_of_several_has_no_letter():
    axes, _ = drawn(plotting.phase_maps(X, Y, {"": VALUES}, **LABELS)).axes
    assert axes.get_title() == axes.get_title("left") == ""


def test_a_map_of_several_may_be_empty():
    maps = {"known": VALUES, "unknown": np.full(VALUES.shape, np.nan)}
    axes = drawn(plotting.phase_maps(X, Y, maps, **LABELS)).axes
    assert axes[1].get_title() == "unknown\n12 of 12 cells hatched: no value"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:3]}, r"`values` must have the shape \(ny, nx\) = \(3, 3\) of its axes, but has"),
        ({"values": VALUES.T}, r"= \(3, 4\) of its axes, but has \(4, 3\)"),
        ({"x": X[None]}, r"`x` must be a vector of finite values, but has shape \(1, 4\)"),
        ({"x": np.zeros(0)}, r"`x` must be a vector of finite values, but has shape \(0,\)"),
        ({"y": [0.0, 1.0, np.nan]}, "`y` must be a vector of finite values, but has shape"),
        ({"y": [0.0, 2.0, 1.0]}, "`y` must be strictly increasing or decreasing"),
        ({"y": [0.0, 1.0, 1.0]}, "`y` must be strictly increasing or decreasing"),
        ({"log_y": True}, "`y` must be positive on a logarithmic axis, but holds -1.0"),
        ({"values": np.full((3, 4), np.inf)}, "No cell has a finite value"),
    ],
)
def test_maps_need_axes_and_values_that_fit(change, message):
    with pytest.raises(ValueError, match=message):
        mapped(**change)


def test_maps_side_by_side_need_values():
    with pytest.raises(ValueError, match="`maps` must hold at least one map"):
        plotting.phase_maps(X, Y, {}, **LABELS)
    with pytest.raises(ValueError, match=r"`second` must have the shape"):
        plotting.phase_maps(X, Y, {"first": VALUES, "second": VALUES.T}, **LABELS)
