"""For whoever brings a bundle to a device: does it compute the same here, and how fast?

    python samples/check_device.py model.edge

Runs the bundle's self-test on this machine's backend, then times it, and ends with status 1 when
the answers differ: fit for a provisioning script.
"""

from __future__ import annotations

import statistics
import sys
import time

from edgesmith.sdk import EdgesmithError, load_model, self_test
from edgesmith.sdk.selftest import golden_pictures


def main(path: str) -> int:
    with load_model(path) as model:
        print(f"{path} on {model.backend.detail}")
        test = self_test(model)
        for output in test.outputs:
            mark = "ok" if output.passed else "DIFFERS"
            print(f"  {output.name:10} difference {output.max_abs:.3g} of {output.tolerance:.3g}  {mark}")
        if not test.passed:
            return 1
        frame = golden_pictures(model.bundle)[0]
        times = []
        for _ in range(30):
            started = time.perf_counter()
            list(model.raw([frame]))
            times.append(1e3 * (time.perf_counter() - started))
        print(f"  frame to raw outputs: {statistics.median(times[5:]):.1f} ms")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1]))
    except EdgesmithError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
