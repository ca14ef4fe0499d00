"""70 % of the time in heavy_work, called by heavy_caller, and 30 % in light_work, called by
light_caller."""

import json
import signal
import sys
import time

stopped = False


def stop(_signal, _frame):
    global stopped
    stopped = True


def heavy_work(rounds):
    x = 1
    for _ in range(rounds):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
    return x


def light_work(rounds):
    x = 1
    for _ in range(rounds):
        x = (x * 69069 + 1) & 0xFFFFFFFF
    return x


def heavy_caller(rounds):
    return heavy_work(rounds) + 1


def light_caller(rounds):
    return light_work(rounds) + 1


def rounds_per_ms():
    rounds, best = 50_000, 1 << 62
    for _ in range(5):
        start = time.thread_time_ns()
        heavy_work(rounds)
        best = min(best, time.thread_time_ns() - start)
    return max(1, rounds * 1_000_000 // max(best, 1))


def main():
    end = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 120)
    signal.signal(signal.SIGTERM, stop)
    per_ms = rounds_per_ms()
    print("ready", flush=True)
    heavy_ns = light_ns = 0
    while not stopped and time.monotonic() < end:
        start = time.thread_time_ns()
        heavy_caller(70 * per_ms)
        middle = time.thread_time_ns()
        light_caller(30 * per_ms)
        heavy_ns += middle - start
        light_ns += time.thread_time_ns() - middle
    print(json.dumps({"cpu_ns": {"heavy_work": heavy_ns, "light_work": light_ns}}))


main()
