"""What torch does in many passes on CPUs with bfloat16 products, in C++: the same, faster.

`head.cpp` makes tiles of logits, and all that is wanted of them while they are in the cache, where
the torch path writes each tile and reads it again for every step; `layers.cpp` is norms and gated
activations. They are compiled when they are first needed (see `build`); a machine that cannot has
torch's operators, with the same results.
"""

from palate.kernels.cpu.build import available, why_not
from palate.kernels.cpu.head import backward, expected, forward, takes

__all__ = ["available", "backward", "expected", "forward", "takes", "why_not"]
