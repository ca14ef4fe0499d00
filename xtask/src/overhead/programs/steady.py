# Ordinary work of a Python program: calls, sorting, text, numbers.
import json
import re


def words(seed):
    return [f"w{(seed * k) % 977}" for k in range(200)]


def count(items):
    counts = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


def render(counts):
    text = json.dumps(sorted(counts.items(), key=lambda pair: pair[1]))
    return len(re.findall(r"w\d*7", text))


def step(seed):
    return render(count(words(seed)))


print("ready", flush=True)
total = 0
while True:
    total = (total + step(total + 7)) % 1000003
