"""Statistics of samples: streams of any length in bounded memory, in float64 whatever the input."""

from .compare import Comparison as Comparison
from .compare import compare as compare
from .controls import ControlledMean as ControlledMean
from .controls import Controls as Controls
from .controls import chi_mean as chi_mean
from .controls import chi_variance as chi_variance
from .controls import quadratic_controls as quadratic_controls
from .moments import Moments as Moments
from .quantiles import Quantile as Quantile
from .quantiles import quantiles as quantiles
from .replicates import ReplicatedMean as ReplicatedMean
from .replicates import by_replicate as by_replicate
from .replicates import replicated as replicated
from .running import RunningMean as RunningMean
from .running import running_mean as running_mean
from .scaling import Fitted as Fitted
from .scaling import Scaling as Scaling
from .scaling import fit_scaling as fit_scaling
