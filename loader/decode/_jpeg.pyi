import numpy as np
from numpy.typing import NDArray

def decode_box(data: bytes, top: int, left: int, height: int, width: int, out: NDArray[np.uint8], /) -> bool: ...
