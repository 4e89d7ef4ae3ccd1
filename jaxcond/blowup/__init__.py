"""The blow-up time $T^*$: the result, the methods, one state and batches."""

from ._batch import blowup_times as blowup_times
from ._batch import escalation as escalation
from ._method import AbstractMethod as AbstractMethod
from ._method import tolerance_floor as tolerance_floor
from ._result import BlowUp as BlowUp
from ._result import Status as Status
from ._solve import blowup_time as blowup_time
from ._solve import check_rtol as check_rtol
from ._solve import resolve_rtol as resolve_rtol
from ._source import AbstractSource as AbstractSource
from ._source import Form as Form
from ._source import HostStates as HostStates
from ._source import Samples as Samples
from ._source import Stored as Stored
from ._source import as_indices as as_indices
from .integration import Direct as Direct
from .integration import Reduced as Reduced
from .integration._integrate import SAFETY as SAFETY
from .integration._integrate import Layerwise as Layerwise
from .integration._integrate import run_to_distance as run_to_distance
from .integration._integrate import speed_of as speed_of
from .integration._integrate import split_terms as split_terms
from .integration._integrate import time_left as time_left
from .series import Series as Series
