"""Both head operators on GPUs, in Triton: tiles of logits that never leave the chip.

The torch path writes each tile of logits and reads it again for every step. Here `programs` take
all that is wanted of a tile where it is made; `head` launches them and never asks the device for a
number, so that the host runs ahead. They are used for float32, bfloat16 and float16 tensors on CUDA
where Triton is installed and right (see `available`); `PALATE_COMPILED=0` keeps to torch's
operators. In Triton's interpreter (`TRITON_INTERPRET=1`) they take tensors on the CPU.
"""

from palate.kernels.triton.available import takes, why_not
from palate.kernels.triton.head import backward, expected, forward

__all__ = ["backward", "expected", "forward", "takes", "why_not"]
