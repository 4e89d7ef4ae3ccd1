r"""jaxcond: the initial condensation of three-layer networks, in JAX.

With small initialisation, gradient descent on a three-layer network follows, in rescaled time, the
effective dynamics $a' = bc,\ b' = ac^T,\ c' = b^Ta$ of Z.-A. Chen and T. Luo (*On the dynamics of
three-layer neural networks: initial condensation*), which blow up at a finite time $T^*$.

All quantities are dimensionless, and times are in units of the effective model. For a network with
risk $R = \frac{1}{2n}\sum_i (f(x_i) - y_i)^2$, weights of standard deviation $\varepsilon$ and
activation $\sigma$, gradient flow time $t$ is $\bar t = \varepsilon\,\sigma'(0)^2\,\|\frac1n\sum_i
y_i x_i\|\,t$ of it. `jaxcond.networks` trains such networks, and its times are training times.
"""

from . import networks as networks
from ._energy import Conserved as Conserved
from ._energy import conserved as conserved
from ._energy import energy as energy
from ._energy import vector_field as vector_field
from ._reduction import Reduction as Reduction
from ._reduction import reduce as reduce
from ._state import State as State
from ._trajectory import Onset as Onset
from ._trajectory import OnsetStatus as OnsetStatus
from ._trajectory import PointStatus as PointStatus
from ._trajectory import Trajectory as Trajectory
from ._trajectory import final_stage_time as final_stage_time
from ._trajectory import trajectory as trajectory
from .blowup import BlowUp as BlowUp
from .blowup import Direct as Direct
from .blowup import Reduced as Reduced
from .blowup import Series as Series
from .blowup import Status as Status
from .blowup import blowup_time as blowup_time
from .blowup import blowup_times as blowup_times
from .bounds import aligned_blowup_time as aligned_blowup_time
from .bounds import blow_up_guaranteed as blow_up_guaranteed
from .bounds import bracket as bracket
from .bounds import carlson_rf as carlson_rf
from .bounds import energy_growth as energy_growth
from .bounds import theorem_1_upper as theorem_1_upper
from .bounds import theorem_2_energy as theorem_2_energy
from .bounds import theorem_2_lower as theorem_2_lower
from .depth import Deep as Deep
from .depth import chain_blowup_time as chain_blowup_time
from .depth import deep_blowup_time as deep_blowup_time
from .depth import deep_bracket as deep_bracket
from .depth import deep_energy as deep_energy
from .depth import deep_vector_field as deep_vector_field
from .depth import two_layer as two_layer
from .depth import two_layer_energy as two_layer_energy
from .ensembles import Balanced as Balanced
from .ensembles import FromFunction as FromFunction
from .ensembles import Gaussian as Gaussian
from .ensembles import LowRank as LowRank
from .ensembles import Orthogonal as Orthogonal
from .ensembles import Uniform as Uniform
from .ensembles import read_states as read_states
from .indicators import Angles as Angles
from .indicators import Condition as Condition
from .indicators import FinalStage as FinalStage
from .indicators import alignment as alignment
from .indicators import angles as angles
from .indicators import condensed as condensed
from .indicators import condensed_set as condensed_set
from .indicators import cosine_similarity as cosine_similarity
from .indicators import effective_rank as effective_rank
from .indicators import final_stage as final_stage
from .indicators import product as product
from .indicators import ratios as ratios
from .indicators import share_within as share_within
from .indicators import singular_values as singular_values
from .sampling import infinite_width as infinite_width
from .sampling import infinite_width_times as infinite_width_times
from .sampling import sample_key as sample_key
from .study import Study as Study
from .study import open_study as open_study
from .study import run as run_study  # noqa: F401
from .study import summarise as summarise

__version__ = "0.1.0"
