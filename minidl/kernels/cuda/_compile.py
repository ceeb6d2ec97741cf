"""The call that compiles a kernel: what the user is told meanwhile, and errors that name the remedy."""

import logging
import os
import time

import cupy

SILENT_SECONDS = 0.5  # of compiling, before the user is told


class Compiling:
    """The seconds that this process has spent on compiling, and whether the user has been told."""

    seconds, told = 0.0, False


def compile_now(function) -> None:
    """Compile a kernel for the current GPU, or load it from CuPy's cache on disk. RuntimeError names the remedy.

    The kernels of a network take 10 to 30 seconds if that cache is empty. A line on the screen says so, once.
    """
    started = time.perf_counter()
    try:
        function.kernel  # noqa: B018 - the property compiles
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(
            f"{function.name}: the CUDA compiler rejects this kernel for compute capability "
            f"{cupy.cuda.Device().compute_capability}. This is a bug of minidl: please report this message, with the "
            f"output of `python -m minidl`; until then use device 'cpu'. The compiler says:\n{error}"
        ) from error
    except RuntimeError as error:
        if "CUDA headers" not in str(error):
            raise
        raise RuntimeError(
            "device 'cuda': CuPy needs the headers of CUDA to compile kernels; pip install \"minidl[cuda13]\" "
            f"(or minidl[cuda12]) brings them. CuPy says: {error}"
        ) from error
    Compiling.seconds += time.perf_counter() - started
    if Compiling.seconds > SILENT_SECONDS and not Compiling.told:
        Compiling.told = True  # printed on stderr unless the program has set up logging
        logging.getLogger("minidl").warning(
            "minidl: compiling CUDA kernels, which takes up to a minute the first time; they are kept in %s",
            os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache"),
        )
