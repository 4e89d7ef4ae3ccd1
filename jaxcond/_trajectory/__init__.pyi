from ._onset import Onset as Onset
from ._path import Trajectory as Trajectory
from ._solve import method_of as method_of
from ._solve import trajectory as trajectory
from ._status import OnsetStatus as OnsetStatus
from ._status import PointStatus as PointStatus
