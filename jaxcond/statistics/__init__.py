"""Statistics of samples: streams of any length in bounded memory, in float64 whatever the input."""

from ._compare import Comparison as Comparison
from ._compare import compare as compare
from ._controls import ControlledMean as ControlledMean
from ._controls import Controls as Controls
from ._controls import chi_mean as chi_mean
from ._controls import chi_variance as chi_variance
from ._controls import quadratic_controls as quadratic_controls
from ._moments import Moments as Moments
from ._quantiles import Quantile as Quantile
from ._quantiles import quantiles as quantiles
from ._replicates import ReplicatedMean as ReplicatedMean
from ._replicates import by_replicate as by_replicate
from ._replicates import replicated as replicated
from ._running import RunningMean as RunningMean
from ._running import running_mean as running_mean
from ._scaling import Fitted as Fitted
from ._scaling import Scaling as Scaling
from ._scaling import fit_scaling as fit_scaling
