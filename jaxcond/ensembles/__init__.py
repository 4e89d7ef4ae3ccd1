"""Random ensembles of initial states."""

from ._arguments import as_indices as as_indices
from ._draws import Draws as Draws
from ._draws import sample_blowup_times as sample_blowup_times
from ._ensemble import AbstractEnsemble as AbstractEnsemble
from ._ensemble import check_seed as check_seed
from ._ensemble import sample_key as sample_key
from ._ensemble import seed_key as seed_key
from .balanced import Balanced as Balanced
from .files import read_states as read_states
from .from_function import FromFunction as FromFunction
from .gaussian import Gaussian as Gaussian
from .gaussian import infinite_width as infinite_width
from .limit import infinite_width_times as infinite_width_times
from .low_rank import LowRank as LowRank
from .orthogonal import Orthogonal as Orthogonal
from .quasi import QuasiDraws as QuasiDraws
from .quasi import entry_moments as entry_moments
from .quasi import entry_names as entry_names
from .quasi import leading_entries as leading_entries
from .quasi import quasi_blowup_times as quasi_blowup_times
from .quasi import quasi_draws as quasi_draws
from .quasi import sobol_entries as sobol_entries
from .uniform import Uniform as Uniform
