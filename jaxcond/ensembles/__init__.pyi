from ._balanced import Balanced as Balanced
from ._ensemble import AbstractEnsemble as AbstractEnsemble
from ._files import read_states as read_states
from ._from_function import FromFunction as FromFunction
from ._gaussian import Gaussian as Gaussian
from ._low_rank import LowRank as LowRank
from ._orthogonal import Orthogonal as Orthogonal
from ._uniform import Uniform as Uniform
