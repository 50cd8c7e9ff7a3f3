"""What the peer scripts share: threads, memory, medians, one JSON object a line."""

import json
import os
import statistics
import time


def use_threads(count):
    """Call this before importing torch: its thread pools read the environment once."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


def all_threads():
    return len(os.sched_getaffinity(0))


def peak_memory_bytes(process="self"):
    """Largest resident memory of this process, or of another, so far (VmHWM)."""
    with open("/proc/%s/status" % process) as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def median(values):
    return statistics.median(values)


def seconds_of(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def emit(**result):
    print(json.dumps(result), flush=True)
