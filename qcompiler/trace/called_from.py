"""From where a function of the user's is called: what cannot be followed when one caller calls it may well be for another.

A detector decodes boxes for its proposals, whose number sizes tell, and for its heads, whose number data tells: `if number > 0:` is a
condition on data in the second call alone. Layers of one class call from one place, so what is found in the first holds for all.
"""

from __future__ import annotations

import os
from types import FrameType, TracebackType

from qcompiler.trace import places

Chain = tuple[tuple[str, str], ...]  # files and names of the user's functions, from the inside


def called_from(frame: FrameType | None) -> Chain:
    """The functions around a frame, up to the model's forward. Comprehensions count as the function that they stand in."""
    found = []
    while frame is not None:
        code = frame.f_code
        if places.is_user_file(code.co_filename):
            if not code.co_name.startswith("<"):
                found.append((code.co_filename, code.co_qualname))
        elif code.co_name in places.BOUNDARY and os.path.abspath(code.co_filename).startswith(places.PACKAGE):
            break
        frame = frame.f_back
    return tuple(found)


def chains_of(traceback: TracebackType | None) -> list[tuple[FrameType, int, Chain]]:
    """The frames of an exception from the outside, each with its last instruction and the functions around it."""
    found: list[tuple[FrameType, int, Chain]] = []
    around = called_from(traceback.tb_frame.f_back) if traceback is not None else ()
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if places.is_user_file(code.co_filename) and not code.co_name.startswith("<"):
            around = ((code.co_filename, code.co_qualname), *around)
        found.append((traceback.tb_frame, traceback.tb_lasti, around))
        traceback = traceback.tb_next
    return found
