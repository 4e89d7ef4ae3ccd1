from ._evidence import Evidence as Evidence
from ._evidence import gather as gather
from ._evidence import random_states as random_states
from ._run import STATEMENTS as STATEMENTS
from ._run import Verdict as Verdict
from ._run import judge as judge
from ._run import run_checks as run_checks
from .statements import Statement as Statement
