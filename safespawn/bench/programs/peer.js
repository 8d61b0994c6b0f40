// Node's child_process.spawn, measured in a Node process that has the ballast itself. The protocol is that of peer.rs:
//
//   node peer.js TARGET STAMP MIB THREADS
'use strict';
const { spawn } = require('node:child_process');
const { readFileSync } = require('node:fs');
const { createInterface } = require('node:readline');
const { Worker, isMainThread, workerData } = require('node:worker_threads');

const NOBODY = 65534;
const PAGE = 4096;
const WINDOW = 1 << 20;
const CHUNK = 512; // MiB: a Buffer has a largest size
const now = process.hrtime.bigint; // CLOCK_MONOTONIC, which the target reads too

// The pacer: looks at the clock all the time, and keeps the longest gap.
if (!isMainThread) {
  const [flags, longest] = [new Int32Array(workerData, 8, 2), new BigInt64Array(workerData, 0, 1)];
  let before = now();
  while (!Atomics.load(flags, 0)) {
    const at = now();
    if (at - before > Atomics.load(longest, 0)) Atomics.store(longest, 0, at - before);
    Atomics.add(flags, 1, 1);
    before = at;
  }
  return;
}

const [target, stamp, mebibytes, threads] = process.argv.slice(2);
const ballast = [];
for (let left = Math.max(1, Number(mebibytes)); left > 0; left -= CHUNK) {
  ballast.push(Buffer.alloc(Math.min(left, CHUNK) << 20, 1));
}

function start(who, ...more) {
  const options = { stdio: 'inherit' };
  if (who === 'other') Object.assign(options, { uid: NOBODY, gid: NOBODY });
  return spawn(target, more, options);
}

function finish(child) {
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`the program ended with ${code}`))));
  });
}

async function exit(who) {
  const before = now();
  const child = start(who);
  const called = now() - before;
  await finish(child);
  return [called, now() - before];
}

async function exec(who) {
  const before = now();
  await finish(start(who, stamp));
  return [readFileSync(stamp).readBigInt64LE(0) - before];
}

async function faults(who) {
  await finish(start(who));
  const before = now();
  for (let at = 0; at < WINDOW; at += PAGE) ballast[0][at]++;
  return [now() - before];
}

async function batch(who, many) {
  const before = now();
  const ends = [];
  for (let i = 0; i < many; i++) ends.push(finish(start(who)));
  const started = now() - before;
  await Promise.all(ends);
  return [started, now() - before];
}

async function stall(who, count) {
  const shared = new SharedArrayBuffer(16);
  const [flags, longest] = [new Int32Array(shared, 8, 2), new BigInt64Array(shared, 0, 1)];
  const pacer = new Worker(__filename, { workerData: shared });
  const awaitLook = () => {
    const from = Atomics.load(flags, 1); // the first may have begun before now
    while (((Atomics.load(flags, 1) - from) | 0) < 2);
  };
  await new Promise((resolve) => pacer.on('online', resolve));
  const gaps = [];
  try {
    for (let i = 0; i < count; i++) {
      awaitLook();
      Atomics.store(longest, 0, 0n);
      await finish(start(who));
      awaitLook();
      gaps.push(Atomics.load(longest, 0));
    }
  } finally {
    Atomics.store(flags, 0, 1);
    await new Promise((resolve) => pacer.on('exit', resolve));
  }
  return gaps;
}

async function measure([what, , who, count, many]) {
  if (what === 'stall') return stall(who, Number(count));
  const one = { exit, exec, faults, batch }[what];
  if (!one) throw new Error(`Node.js spawns from one thread: no ${what}`);
  const taken = [];
  for (let i = 0; i < Number(count); i++) taken.push(...(await one(who, Number(many))));
  return taken;
}

async function main() {
  if (Number(threads) > 1) {
    console.log('! Node.js has no plain threads');
    return;
  }
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      console.log((await measure(line.split('\t'))).join('\t'));
    } catch (problem) {
      console.log(`! ${problem.message}`);
    }
  }
}

main();
