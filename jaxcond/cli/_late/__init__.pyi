from . import escapes as escapes
from . import progress as progress
from . import session as session
