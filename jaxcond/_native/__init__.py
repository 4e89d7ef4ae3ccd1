"""The optional native kernel for CPUs, compiled at installation and loaded on first use.

The kernel implements the series method and its gradient (`blowup.series`), the reduction before it,
the pieces of a flow (`flow.pieces`), and sampling of reduced Gaussian states. Each of these also
exists as a JAX program, which is used if the kernel was not built, cannot be loaded, or is disabled
with the environment variable `JAXCOND_NATIVE=0`. The kernel selects its instruction set by the
processor when it is loaded; the variable selects another one with the value `avx512`, `avx2` or
`baseline`.
"""

from ._library import FFI_TARGETS as FFI_TARGETS
from ._library import FILE as FILE
from ._library import draw_gaussian as draw_gaussian
from ._library import handlers as handlers
from ._library import instruction_set as instruction_set
from ._library import series_gradient as series_gradient
from ._library import solve_series as solve_series
from ._library import status as status
