// 70 % of the time in heavyWork, called by heavyCaller, and 30 % in lightWork, called by lightCaller.
// The clock is that of the process: Node 20 has none of the thread.
'use strict';

function heavyWork(rounds) {
  let x = 1;
  for (let i = 0; i < rounds; i++) x = (Math.imul(x, 1664525) + 1013904223) | 0;
  return x;
}

function lightWork(rounds) {
  let x = 1;
  for (let i = 0; i < rounds; i++) x = (Math.imul(x, 69069) + 1) | 0;
  return x;
}

// The optimizer would inline a function into its only caller; these two it may not know.
const work = { heavyWork, lightWork };

function heavyCaller(rounds) {
  return work[rounds > 0 ? 'heavyWork' : 'lightWork'](rounds) + 1;
}

function lightCaller(rounds) {
  return work[rounds > 0 ? 'lightWork' : 'heavyWork'](rounds) + 1;
}

function cpuNs() {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
}

let stopped = false;
const used = { heavyWork: 0, lightWork: 0 };
const end = Date.now() + 1000 * Number(process.argv[2] || 120);
process.on('SIGTERM', () => { stopped = true; });

function roundsPerMs(work) {
  const rounds = 2e6;
  let best = Infinity;
  for (let i = 0; i < 20; i++) {
    const start = cpuNs();
    work(rounds);
    best = Math.min(best, cpuNs() - start);
  }
  return rounds * 1e6 / Math.max(best, 1);
}

const heavyPerMs = roundsPerMs(heavyCaller);
const lightPerMs = roundsPerMs(lightCaller);

// One phase a turn of the event loop, so that the signal is seen.
function turn() {
  if (stopped || Date.now() >= end) {
    console.log(JSON.stringify({ cpu_ns: used }));
    return;
  }
  const start = cpuNs();
  heavyCaller(70 * heavyPerMs);
  const middle = cpuNs();
  lightCaller(30 * lightPerMs);
  used.heavyWork += middle - start;
  used.lightWork += cpuNs() - middle;
  setImmediate(turn);
}

console.log('ready');
turn();
