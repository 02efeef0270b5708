# This machine may be copied while an interpreter runs in it. Every process of a copy then gets
# SIGURG, which nobody has to handle: this interpreter's random numbers must not be those of its
# original.
def _begin_anew(number, frame):
    import os
    import sys

    for name in ("random", "numpy.random"):
        seed = getattr(sys.modules.get(name), "seed", None)
        if seed is not None:
            seed()
    add = getattr(sys.modules.get("_ssl"), "RAND_add", None)
    if add is not None:
        add(os.urandom(32), 32.0)


import _signal

try:
    if _signal.getsignal(_signal.SIGURG) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGURG, _begin_anew)
except ValueError:
    pass  # not in the main interpreter, which alone handles signals
