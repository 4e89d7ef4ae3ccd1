"""The native kernel for CPUs: compiled at installation, loaded on first use, optional.

It holds the series method and its gradient (`blowup.series`), the reduction that goes before it,
the pieces of a flow (`flow.pieces`), and the drawing of reduced Gaussian states. What it computes
stands as a JAX program beside it, which is used where the kernel was not built, cannot be loaded,
or is switched off by the environment variable `JAXCOND_NATIVE=0`. Its instruction set is chosen
when it is loaded, by what the processor has; a name as value of the variable (`avx512`, `avx2`,
`baseline`) asks for one.
"""

from ._library import FFI_TARGETS as FFI_TARGETS
from ._library import FILE as FILE
from ._library import draw_gaussian as draw_gaussian
from ._library import handlers as handlers
from ._library import instruction_set as instruction_set
from ._library import series_gradient as series_gradient
from ._library import solve_series as solve_series
from ._library import status as status
