"""The blow-up time $T^*$: the result, the methods, one state and batches."""

from ._batch import AbstractSource as AbstractSource
from ._batch import blowup_times as blowup_times
from ._batch import solve_indices as solve_indices
from ._solve import blowup_time as blowup_time
from .direct import Direct as Direct
from .method import AbstractMethod as AbstractMethod
from .reduced import Reduced as Reduced
from .result import BlowUp as BlowUp
from .result import Status as Status
from .series import Series as Series
