"""The program that runs environments in another interpreter, for an env agent on the same host.

It is for Python 3.7 and later, CPython and PyPy, and needs only the standard library. The
environment's numpy, gymnasium or gym are used if they are there. It runs the environments in the
main thread, one request after another, and answers each.

In the other interpreter, `__main__` loads this folder as a package of another name, because gymwire
may be absent there, or another version may be installed. So its modules import each other
relatively, and nothing else of gymwire. The env agent imports some of them as well.
"""
