"""Goes on in a Python program that `safespawn exec` started.

``site`` runs it, because PYTHONPATH leads to this directory. What fails here ends the process: ``site``
would go on with the program as if nothing were wrong. So that no interpreter fails in reading it, it is
written in what Python 2.7 understands.
"""

try:
    import _safespawn_startup

    _safespawn_startup.begin()
except BaseException as problem:
    import os

    try:
        import sys

        said = str(problem) or type(problem).__name__
        if isinstance(problem, SyntaxError):
            said = "%s is too old for safespawn: %s" % (sys.executable, said)
        text = "safespawn exec: %s\n" % said
        os.write(2, text.encode("ascii", "backslashreplace"))
    finally:
        os._exit(125)
_safespawn_startup.run_hidden(__name__)
