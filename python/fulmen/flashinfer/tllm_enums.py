"""Enums that clients pass around."""
import enum


class SfLayout(enum.IntEnum):
    """How the scale factors of block quantisation lie."""
    layout_128x4 = 0
    layout_8x4 = 1
    layout_linear = 2
