"""Samples of distributions: drawn by index, by quasi-Monte Carlo, and at infinite width."""

from ._chi import chi_of_key as chi_of_key
from ._draws import Draws as Draws
from ._draws import HostSampler as HostSampler
from ._gaussian import reduced_gaussian as reduced_gaussian
from ._gaussian import reduced_gaussians_on_host as reduced_gaussians_on_host
from ._keys import check_seed as check_seed
from ._keys import sample_key as sample_key
from ._keys import seed_key as seed_key
from ._keys import threefry_words as threefry_words
from ._limit import infinite_width as infinite_width
from ._limit import infinite_width_times as infinite_width_times
from ._quasi import QuasiDraws as QuasiDraws
from ._quasi import chi_quantile as chi_quantile
from ._quasi import entry_moments as entry_moments
from ._quasi import entry_names as entry_names
from ._quasi import leading_entries as leading_entries
from ._quasi import quasi_draws as quasi_draws
from ._quasi import sobol_entries as sobol_entries
from ._widths import check_width as check_width
from ._widths import is_traced as is_traced
