// Ordinary work of a Node program: calls, sorting, text, numbers.
'use strict';

function words(seed) {
  return Array.from({ length: 200 }, (_, k) => `w${(seed * k) % 977}`);
}

function count(items) {
  const counts = new Map();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

function render(counts) {
  const text = JSON.stringify([...counts].sort((a, b) => a[1] - b[1]));
  return (text.match(/w\d*7/g) ?? []).length;
}

function step(seed) {
  return render(count(words(seed)));
}

require('fs').writeSync(1, 'ready\n');
let total = 0;
for (;;) total = (total + step(total + 7)) % 1000003;
