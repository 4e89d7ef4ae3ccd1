"""States along the way to the blow-up, and when the final stage begins."""

from ._flow import EnergyClock as EnergyClock
from ._flow import follow as follow
from ._solve import trajectory as trajectory
from .onset import Onset as Onset
from .onset import OnsetStatus as OnsetStatus
from .onset import final_stage_time as final_stage_time
from .result import PointStatus as PointStatus
from .result import Trajectory as Trajectory
