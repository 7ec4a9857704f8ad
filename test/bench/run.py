"""make bench [ARGS='-rounds 5 -connections 5000,15000']

Ratios and medians for comparing two versions of Sluice on one machine; no thresholds, no verdict.
"""

import argparse

import connections
import pipeline

from internal.server.listen import raise_descriptor_limit


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("-rounds", type=int, default=5, help="rounds of the pipeline benchmark")
    parser.add_argument("-connections", default="5000,15000,19000", help="how many connections to hold")
    options = parser.parse_args()
    raise_descriptor_limit()
    print(f"pipeline: {pipeline.SESSIONS} sessions, a chunk each a step, {pipeline.CHUNKS} steps")
    for name, microseconds, ratio in pipeline.run(options.rounds):
        print(f"  {name:24} {microseconds:6.2f} µs/frame   {ratio:5.2f} ×")
    print("idle connections on a real server")
    for count in map(int, options.connections.split(",")):
        arrival = connections.run(count)
        print(
            f"  {arrival.count:6,} held   {arrival.kib:5.1f} KiB each   "
            f"{arrival.connects_per_s:6,.0f} connects/s   loop lag ≤ {arrival.worst_lag_s * 1000:g} ms"
        )


if __name__ == "__main__":
    main()
