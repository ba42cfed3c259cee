"""The long lane: `python -m tests.oracle --worlds 5000` holds the core against the oracle on so many worlds."""

import argparse
import sys
import time
from collections import Counter

from metering.errors import BadInput
from tests.oracle.compare import MET, commitments_differ, differences, schedules_differ, sizes_differ
from tests.oracle.demand_compare import DEMAND_MET, demand_differs
from tests.oracle.demand_worlds import demand_world
from tests.oracle.worlds import world


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--worlds", type=int, default=1_000, help="how many (default 1000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the first seed; the next worlds count on from it"
    )
    parser.add_argument("--shown", type=int, default=20, help="how many differences to print (default 20)")
    asked = parser.parse_args()
    met: Counter[str] = Counter()
    wrong = refused = shown = 0
    since = time.monotonic()
    for done, seed in enumerate(range(asked.seed, asked.seed + asked.worlds), 1):
        try:
            told = [
                *differences(world(seed), met),
                *schedules_differ(seed),
                *commitments_differ(seed),
                *sizes_differ(seed),
                *demand_differs(demand_world(seed), met),
            ]
        except BadInput as why:  # some add amounts up to more than a report may carry
            told = []
            refused += 1
            print(f"seed {seed}: refused, nothing compared: {why}"[:400], flush=True)
        wrong += bool(told)
        for line in told[: asked.shown - shown]:
            print(line, flush=True)
        shown += len(told[: asked.shown - shown])
        if done % 100 == 0 or done == asked.worlds:
            rate = (time.monotonic() - since) / done
            print(f"{done:,} worlds, {wrong} differ, {rate:.2f} s each", file=sys.stderr, flush=True)
    for name in sorted(met):
        print(f"  {name}: {met[name]:,}")
    if refused:
        print(f"{refused} worlds were refused")
    missed = sorted((MET | DEMAND_MET) - {name for name in met if met[name]})
    if missed:
        print(f"inconclusive: no world had {', '.join(missed)}; ask for more with --worlds")
    if wrong or not missed:
        print(f"{wrong} worlds differ" if wrong else "equal to the last digit")
    return 1 if wrong or missed or refused > asked.worlds // 100 else 0


if __name__ == "__main__":
    sys.exit(main())
