"""How many tokens a forward pass may hold: found by trying, remembered on this host, halved when memory runs out."""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_FIRST = {"cpu": 1_024, "cuda": 8_192}
_LAST = {"cpu": 16_384, "cuda": 524_288}
_GAIN = 1.05  # a larger budget must be faster by so much, for it takes more memory
_SECONDS = 20.0  # trying ends here at the latest: a large model on a CPU would take minutes


class Budget:
    """The token budget of a scorer on a device. `tokens` may fall while it is used; it never rises.

    `file`: where other processes of this host find it; None keeps it in this process.
    """

    def __init__(self, tokens: int, file: Path | None = None) -> None:
        self.tokens = tokens
        self._file = file

    def halve(self, tried: int) -> None:
        """Memory ran out with a batch of `tried` tokens: from now on half of that at most."""
        # Batches that were cut before the last halving fail, too: they are no reason for another.
        self.tokens = max(1, min(self.tokens, tried // 2))
        if self._file is not None:
            with _locked(self._file):
                self.tokens = min(self.tokens, _read(self._file) or self.tokens)
                _write(self._file, self.tokens)


def found(
    scorer_digest: bytes, device: torch.device, try_out: Callable[[int], None], folder: Path | None = None
) -> Budget:
    """The budget remembered for this scorer on a device of this name, else the best of those tried now.

    `try_out(tokens)` runs a forward pass of so many. The first of several processes tries, the others wait for it.
    """
    file = (folder or remembered_in()) / f"{scorer_digest.hex()}-{device_name(device)}.json"
    with _locked(file):
        tokens = _read(file)
        if tokens is None:
            tokens = _best(device, try_out)
            _write(file, tokens)
    return Budget(tokens, file)


def remembered_in() -> Path:
    """The folder of remembered budgets: $ECOMSPARK_CACHE, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("ECOMSPARK_CACHE") or Path(cache) / "ecomspark") / "token-budgets"


def device_name(device: torch.device) -> str:
    """A name for files: the GPU's own, or the CPU's capability and thread count."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu-{torch.backends.cpu.get_cpu_capability()}-{torch.get_num_threads()}"
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:60] + "-" + hashlib.sha256(name.encode()).hexdigest()[:6]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the host: torch and cuBLAS say it by plain RuntimeErrors, too."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether the process can use its GPU no more: after an illegal access or a failed assertion every call fails."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not is_out_of_memory(error)


def _best(device: torch.device, try_out: Callable[[int], None]) -> int:
    """Doubled until memory runs out or it is no longer worth its memory."""
    start = time.monotonic()
    best, best_speed = _FIRST[device.type] // 4, 0.0
    tokens = _FIRST[device.type]
    while tokens <= _LAST[device.type]:
        try:
            try_out(tokens)  # warm: kernels are chosen and memory is taken the first time
            began = time.perf_counter()
            try_out(tokens)
            speed = tokens / (time.perf_counter() - began)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if speed < best_speed * _GAIN:
            break
        best, best_speed, tokens = tokens, speed, tokens * 2
        if time.monotonic() - start > _SECONDS:
            break
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _read(file: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        tokens = int(json.loads(file.read_text(encoding="utf-8"))["token_budget"])
        return tokens if tokens > 0 else None
    return None


def _write(file: Path, tokens: int) -> None:
    with suppress(OSError):  # a read-only home: this process knows it all the same
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as made:
            json.dump({"token_budget": tokens}, made)
        os.replace(made.name, file)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
