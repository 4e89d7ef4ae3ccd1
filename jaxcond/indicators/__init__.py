"""Indicators of condensation: functions of one state, wherever it comes from."""

from .alignment import alignment as alignment
from .alignment import cosine_similarity as cosine_similarity
from .alignment import effective_rank as effective_rank
from .alignment import product as product
from .alignment import share_within as share_within
from .alignment import singular_values as singular_values
from .angles import Angles as Angles
from .angles import angles as angles
from .angles import angles_of as angles_of
from .angles import condensed as condensed
from .angles import condensed_set as condensed_set
from .angles import ratios as ratios
from .angles import ratios_of as ratios_of
from .final_stage import CONDITIONS as CONDITIONS
from .final_stage import Condition as Condition
from .final_stage import FinalStage as FinalStage
from .final_stage import final_stage as final_stage
from .final_stage import final_stage_of as final_stage_of
from .final_stage import resolve_tolerance as resolve_tolerance
from .products import Products as Products
