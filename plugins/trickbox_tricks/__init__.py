"""The tricks that come with trickbox, one module a family. They use nothing but public names of `trickbox.authoring`.

Each is imported when it is first used, as a third party's would be.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
