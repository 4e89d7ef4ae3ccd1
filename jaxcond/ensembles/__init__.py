"""Random ensembles of initial states."""

from ._arguments import as_indices as as_indices
from ._balanced import Balanced as Balanced
from ._draws import Draws as Draws
from ._draws import sample_blowup_times as sample_blowup_times
from ._ensemble import AbstractEnsemble as AbstractEnsemble
from ._ensemble import check_seed as check_seed
from ._ensemble import sample_key as sample_key
from ._ensemble import seed_key as seed_key
from ._files import read_states as read_states
from ._from_function import FromFunction as FromFunction
from ._gaussian import Gaussian as Gaussian
from ._gaussian import infinite_width as infinite_width
from ._limit import infinite_width_times as infinite_width_times
from ._low_rank import LowRank as LowRank
from ._orthogonal import Orthogonal as Orthogonal
from ._quasi import QuasiDraws as QuasiDraws
from ._quasi import entry_moments as entry_moments
from ._quasi import entry_names as entry_names
from ._quasi import leading_entries as leading_entries
from ._quasi import quasi_blowup_times as quasi_blowup_times
from ._quasi import quasi_draws as quasi_draws
from ._quasi import sobol_entries as sobol_entries
from ._uniform import Uniform as Uniform
