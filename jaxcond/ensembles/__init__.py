"""Random ensembles of initial states."""

from ._draws import sample_blowup_times as sample_blowup_times
from ._ensemble import AbstractEnsemble as AbstractEnsemble
from ._ensemble import check_seed as check_seed
from ._ensemble import sample_key as sample_key
from ._ensemble import seed_key as seed_key
from .gaussian import Gaussian as Gaussian
from .gaussian import infinite_width as infinite_width
