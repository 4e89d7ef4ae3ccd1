from ._methods import Direct as Direct
from ._methods import Reduced as Reduced
from ._taylor import Taylor as Taylor
