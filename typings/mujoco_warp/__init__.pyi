# mujoco_warp is untyped, and pyright takes minutes to infer it: everything in it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
