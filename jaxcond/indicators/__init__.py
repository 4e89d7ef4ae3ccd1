"""Indicators of condensation: functions of one state, wherever it comes from."""

from ._alignment import alignment as alignment
from ._alignment import cosine_similarity as cosine_similarity
from ._alignment import effective_rank as effective_rank
from ._alignment import product as product
from ._alignment import share_within as share_within
from ._alignment import singular_values as singular_values
from ._angles import Angles as Angles
from ._angles import angles as angles
from ._angles import angles_of as angles_of
from ._angles import condensed as condensed
from ._angles import condensed_set as condensed_set
from ._angles import ratios as ratios
from ._angles import ratios_of as ratios_of
from ._final_stage import CONDITIONS as CONDITIONS
from ._final_stage import Condition as Condition
from ._final_stage import FinalStage as FinalStage
from ._final_stage import final_stage as final_stage
from ._final_stage import final_stage_of as final_stage_of
from ._final_stage import resolve_tolerance as resolve_tolerance
from ._products import Products as Products
