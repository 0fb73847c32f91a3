"""Training tricks as plugins: switch one on in one line, on the model you already have, in the loop you already have.

What a user of tricks types is here: the names in ``__init__.pyi``. None is imported before it is used: ``import
trickbox`` loads neither torch nor matplotlib. What an author of tricks needs is in `trickbox.authoring`. Begin reading
at `trickbox.hooks`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
