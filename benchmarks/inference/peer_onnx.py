"""The exported network in ONNX Runtime, run by an interpreter that has it (no part of this package is needed).

PEERS/onnxruntime/bin/python benchmarks/inference/peer_onnx.py paper.onnx --shape 192 192 192
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    """Load, run once, tell the costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=(192, 192, 192))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = given.threads, 1
    session = onnxruntime.InferenceSession(str(given.network), options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    image = np.random.default_rng(0).random((1, 1, *given.shape), dtype=np.float32)
    cpu, wall = time.process_time(), time.perf_counter()
    session.run(None, {wanted.name: image})
    facts = {"forward_cpu_s": time.process_time() - cpu, "forward_wall_s": time.perf_counter() - wall}
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts |= {"process_cpu_s": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 2**20}
    print("result: " + json.dumps({"onnxruntime": onnxruntime.__version__, "shape": list(given.shape), **facts}))


if __name__ == "__main__":
    main()
