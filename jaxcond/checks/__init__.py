"""The paper's statements, and our own, as numerical checks that anyone can run."""

from .evidence import Evidence as Evidence
from .evidence import gather as gather
from .evidence import random_states as random_states
from .run import STATEMENTS as STATEMENTS
from .run import Verdict as Verdict
from .run import judge as judge
from .run import run_checks as run_checks
from .statements import Statement as Statement
