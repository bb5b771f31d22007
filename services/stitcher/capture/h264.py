"""Detect lost pictures in H.264 by their frame numbers.

A decoder flags a picture if part of it is missing. If a whole picture is missing, such as one of a still scene that
fits one packet, the decoder continues from an older one without flagging it, and the damage stays until the next key
frame.

Reference pictures are numbered consecutively (frame_num in 7.4.3 of ISO/IEC 14496-10), so a gap reveals a loss.
"""

from __future__ import annotations

from collections.abc import Iterator

START = b"\x00\x00\x01"
SLICE, IDR_SLICE, SPS = 1, 5, 7
HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
"""Profiles whose sequence parameters contain the chroma format and scaling lists."""
ENOUGH = 64
"""Bytes of a NAL unit that contain all parsed fields of a slice header or, without scaling lists, of a sequence
parameter set."""


BELIEVED_AFTER, BELIEVED_BELOW = 50, 0.5
"""If, after this many pictures, an encoder seems to lose more than this share of them, its numbering is not standard:
ignore it."""


class FrameNumbers:
    """Tracks the frame numbers of one stream. Owned by one thread."""

    def __init__(self) -> None:
        self._bits = 0
        """Length of a frame number; 0 while it is not known, or if gaps are allowed."""
        self._newest: int | None = None
        self._pictures = 0
        self._missed = 0

    def misses(self, packet: bytes) -> bool:
        """Read the next packet (Annex B). Return whether a reference picture before it is missing."""
        for kind, is_reference, payload in _units(packet):
            if kind == SPS:
                self._bits = _number_bits(payload)
            elif kind in (SLICE, IDR_SLICE):
                return self._take(kind, payload, is_reference=is_reference)
        return False

    def _take(self, kind: int, payload: bytes, *, is_reference: bool) -> bool:
        if not self._bits:
            return False
        bits = _Bits(payload)
        for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
            bits.unsigned()
        number, before = bits.take(self._bits), self._newest
        if is_reference:
            self._newest = number  # any other picture has the number of the reference picture that follows it
        if kind == IDR_SLICE or before is None:
            return False
        # The number wraps around. It repeats in the second field of a frame.
        misses = number not in (before, (before + 1) % (1 << self._bits))
        self._pictures, self._missed = self._pictures + 1, self._missed + misses
        return misses and not (self._pictures >= BELIEVED_AFTER and self._missed > BELIEVED_BELOW * self._pictures)


def _units(packet: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """Yield the type of each NAL unit, whether it is a reference, and the beginning of its payload."""
    start = packet.find(START)
    while 0 <= start < len(packet) - 4:
        head = packet[start + 3]  # forbidden_zero_bit, nal_ref_idc (2 bits), nal_unit_type (5 bits)
        yield head & 31, bool(head >> 5 & 3), _unescaped(packet[start + 4 : start + 4 + ENOUGH])
        start = packet.find(START, start + 4)


def _unescaped(payload: bytes) -> bytes:
    """Remove the emulation prevention bytes from the payload."""
    return payload.replace(b"\x00\x00\x03", b"\x00\x00")


def _number_bits(payload: bytes) -> int:
    """Return the length of a frame number from a sequence parameter set, or 0 if frame numbers are unusable."""
    bits = _Bits(payload)
    profile = bits.take(8)
    bits.take(16)  # constraints and level
    bits.unsigned()  # seq_parameter_set_id
    if profile in HIGH_PROFILES:
        if bits.unsigned() == 3:  # chroma_format_idc
            bits.take(1)  # separate_colour_plane_flag puts colour_plane_id before the number
            return 0
        bits.unsigned()  # bit_depth_luma_minus8
        bits.unsigned()  # bit_depth_chroma_minus8
        bits.take(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.take(1):  # scaling lists, which cameras do not send
            return 0
    length = bits.unsigned() + 4  # log2_max_frame_num_minus4, at most 12
    order = bits.unsigned()  # pic_order_cnt_type
    if order == 0:
        bits.unsigned()  # log2_max_pic_order_cnt_lsb_minus4
    elif order == 1:
        return 0  # offsets follow, which this function does not parse
    bits.unsigned()  # max_num_ref_frames
    gaps_are_allowed = bits.take(1)  # gaps_in_frame_num_value_allowed_flag
    return 0 if gaps_are_allowed or length > 16 else length


class _Bits:
    """Reads bits. Bits beyond the end are zeros."""

    def __init__(self, payload: bytes) -> None:
        self._value = int.from_bytes(payload, "big")
        self._left = len(payload) * 8

    def take(self, count: int) -> int:
        """Read an unsigned number of ``count`` bits."""
        self._left -= count
        found = self._value >> self._left if self._left >= 0 else 0
        return found & ((1 << count) - 1)

    def unsigned(self) -> int:
        """Read an Exp-Golomb code, ue(v)."""
        zeros = 0
        while self._left > 0 and zeros < 32 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + (self.take(zeros) if zeros else 0)
