"""BLAS with one thread while a kernel runs, so that it does not compete with the kernel's own threads."""

import functools
import threading

_lock = threading.Lock()
_users: set[object] = set()
_limits: list[tuple] = []  # (library, its number of threads) while BLAS is limited


@functools.cache
def _libraries() -> list:
    """The BLAS libraries of this process."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


def limit(user: object) -> None:
    """Set BLAS to one thread until `user`, and every other user, calls `restore`.

    The setting belongs to the whole process. That is why its users are kept, and why the first one notes the numbers of
    threads before it changes any: Ctrl-C may interrupt this function between any two lines.
    """
    with _lock:
        _users.add(user)
        if not _limits:
            _limits[:] = [(library, library.num_threads) for library in _libraries()]
        for library, _ in _limits:
            library.set_num_threads(1)


def restore(user: object) -> None:
    """The end of what `limit` began. It may be called again, and must be if Ctrl-C interrupted it."""
    with _lock:
        _users.discard(user)
        if not _users:
            for library, threads in _limits:
                library.set_num_threads(threads)
            _limits.clear()


def after_fork() -> None:
    """A forked process is inside no kernel. What was noted stays: the end of its first kernel restores it."""
    global _lock
    _lock = threading.Lock()
    _users.clear()
