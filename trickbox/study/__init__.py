"""Studies: does a trick help here, by how much, at what cost? Answered over paired seeds, with pictures.

Each name is imported when it is first used, because every worker process imports this package, and a task needs only
one module of it.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
