from ._batch import chain_times as chain_times
from ._solve import blowup_time_of_chain as blowup_time_of_chain
from ._solve import time_left_of_chain as time_left_of_chain
