"""Where the rows of CSV text end, though quoted fields may hold line ends (RFC 4180)."""

from __future__ import annotations

from numba import njit

_NEW_LINE, _RETURN, _QUOTE, _COMMA = 10, 13, 34, 44


@njit(cache=True, nogil=True)
def _opening(text, i):
    """Return where the next quoted field opens, in text that is not quoted at ``i``; the text's length: nowhere.

    A quote opens a field at its first byte only; elsewhere it stands for itself.
    """
    while i < len(text):
        if text[i] == _QUOTE and (i == 0 or text[i - 1] == _COMMA or text[i - 1] == _NEW_LINE
                                  or text[i - 1] == _RETURN):
            return i
        i += 1
    return i


@njit(cache=True, nogil=True)
def _behind(text, i):
    """Return the place behind the quote that closes the field of which ``i`` is a part; -1: it does not close."""
    while i < len(text):
        if text[i] == _QUOTE:
            if i + 1 == len(text) or text[i + 1] != _QUOTE:
                return i + 1
            i += 1
        i += 1
    return -1


@njit(cache=True, nogil=True)
def ends_quoted(text, quoted):
    """Say whether ``text`` (bytes,) uint8 ends in a quoted field; it begins with a row, or with ``quoted`` in one."""
    i = 0
    while True:
        if quoted:
            i = _behind(text, i)
            if i < 0:
                return True
        i = _opening(text, i)
        if i == len(text):
            return False
        i += 1
        quoted = True


@njit(cache=True, nogil=True)
def first_row(text):
    """Return where the first row begins in ``text`` (bytes,) uint8 that begins in a quoted field; -1: nowhere."""
    i = _behind(text, 0)
    while 0 <= i < len(text):
        stop = _opening(text, i)
        for k in range(i, stop):
            if text[k] == _NEW_LINE:
                return k + 1
        i = _behind(text, stop + 1)
    return -1


@njit(cache=True, nogil=True)
def last_row_end(text):
    """Return where the last whole row of ``text`` (bytes,) uint8 ends, which begins with a row; 0: it has none."""
    i, last = 0, 0
    while 0 <= i < len(text):
        stop = _opening(text, i)
        for k in range(stop - 1, i - 1, -1):
            if text[k] == _NEW_LINE:
                last = k + 1
                break
        i = _behind(text, stop + 1)
    return last
