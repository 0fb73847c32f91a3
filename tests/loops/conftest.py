"""The loops are read as text, with and without their lines for trickbox; some need a framework to be imported."""

from __future__ import annotations

collect_ignore = ["accelerated.py", "fabric.py", "ignited.py", "skorched.py"]
