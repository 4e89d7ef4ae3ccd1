from . import progress as progress
from . import session as session
