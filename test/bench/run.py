"""make bench [ARGS='-rounds 5 -connections 5000,15000']

Ratios and medians for comparing two versions of Sluice on one machine; no thresholds, no verdict.
"""

import argparse

import connections
import pipeline
import queues
import storage

from internal.server.listen import raise_descriptor_limit


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("-rounds", type=int, default=5, help="rounds of the pipeline benchmark")
    parser.add_argument("-connections", default="5000,15000,19000", help="how many connections to hold")
    parser.add_argument("-idle", type=int, default=100_000, help="connections over all -processes; 0: skip")
    parser.add_argument("-processes", type=int, default=6, help="server processes that hold them")
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
    print(f"queues: {queues.STREAMS} streams, a chunk each every {queues.INTERVAL_MS} ms, real processes")
    for driver, cost in queues.run(max(1, options.rounds // 2 + 1)).items():
        parts = "".join(f"{part} {us:5.2f}   " for part, us in sorted(cost.us_per_frame.items()))
        print(f"  {driver:8} µs/frame: {parts}first chunk {cost.first_ms:.2f} ms")
    print("storage: turns (a question and its answer) in conversations, on one connection that writes")
    for name, rates in storage.run().items():
        for rate in rates:
            print(
                f"  {name:10} {rate.callers:5,} callers   {rate.turns:6,.0f} turns/s   "
                f"{rate.turns / rate.alone:5.1f} × one by one   {rate.commits:6,.0f} commits/s   "
                f"a question is accepted in {rate.p50_ms:.1f} ms"
            )
    if options.idle:
        idle = queues.hold_idle(options.idle, options.processes)
        print(
            f"  {idle.count:,} idle connections over {idle.processes} processes: {idle.kib:.1f} KiB each, "
            f"opened in {idle.seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
