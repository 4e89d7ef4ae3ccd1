from ._onset import Onset as Onset
from ._onset import final_stage_time as final_stage_time
from ._result import Trajectory as Trajectory
from ._solve import trajectory as trajectory
from ._status import OnsetStatus as OnsetStatus
from ._status import PointStatus as PointStatus
