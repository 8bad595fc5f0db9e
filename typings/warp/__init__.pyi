# warp's own types send pyright through megabytes of generated overloads: everything in it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
