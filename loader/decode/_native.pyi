import numpy as np
from numpy.typing import NDArray

def decode_box(data: bytes, top: int, left: int, height: int, width: int, out: NDArray[np.uint8], /) -> bool: ...
def resize(
    pixels: NDArray[np.uint8],
    out: NDArray[np.uint8],
    resized_height: int,
    resized_width: int,
    window_top: int,
    window_left: int,
    size: int,
    bicubic: bool,
    flip: bool,
    /,
) -> bool: ...
