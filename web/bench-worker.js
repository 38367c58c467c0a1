// Times the benchmark's kernels, off the page's thread: ours and ONNX Runtime's one after another, so that neither waits for the other.

import { loadOnnx, onnxResult, onnxTimes } from './bench-onnx.js';
import { nameOf } from './conformance.mjs';
import init, { Bench } from './pulid/pulid_wasm.js';

/** Sizes by name. Each kernel's result has the shape of its first operand, so that ONNX's models can be chains. */
const SIZES = {
  small: [
    'matmul/m=256;k=640;n=640',
    'matmul/m=64;k=1280;n=1280',
    'conv2d/x=1x16x16x320;kernel=3x3;out=320',
    'conv2d/x=1x8x8x640;kernel=3x3;out=640',
    'attention/b=1;tq=512;tk=512;h=5;d=64',
    'attention/b=1;tq=256;tk=256;h=10;d=64',
  ],
  sdxl: [
    'matmul/m=4096;k=640;n=640',
    'matmul/m=1024;k=1280;n=1280',
    'conv2d/x=1x128x128x320;kernel=3x3;out=320',
    'conv2d/x=1x64x64x640;kernel=3x3;out=640',
    'conv2d/x=1x32x32x1280;kernel=3x3;out=1280',
    'attention/b=1;tq=4096;tk=4096;h=10;d=64',
    'attention/b=1;tq=1024;tk=1024;h=20;d=64',
  ],
};
const SAMPLES = 5;
let stopped = false;

const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

/** The same deviates for a shape each time, small enough that results keep the size of operands. */
function noise(shape, scale, salt) {
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
  let state = 0x9E3779B9 ^ (salt + 1);
  for (let i = 0; i < values.length; i++) {
    // Marsaglia's xorshift.
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    values[i] = (state / 2 ** 31) * scale;
  }
  return values;
}

/** Operands for both: activations between -1 and 1, weights whose products keep that size, and one input for attention. */
function operandsOf(operator, shapes) {
  const x = noise(shapes[0], 1, 0);
  if (operator === 'attention') return [x, x, x];
  const inner = shapes[1].slice(0, -1).reduce((a, b) => a * b, 1);
  return [x, noise(shapes[1], Math.sqrt(3 / inner), 1)];
}

/** The largest difference in units of the root mean square. */
function difference(ours, theirs) {
  let [most, squares] = [0, 0];
  for (let i = 0; i < theirs.length; i++) {
    most = Math.max(most, Math.abs(ours[i] - theirs[i]));
    squares += theirs[i] * theirs[i];
  }
  return ours.length === theirs.length && Number.isFinite(most) ? most / Math.sqrt(squares / theirs.length) : Infinity;
}

/** A difference that other orders of summation in f32 do not reach. */
const WRONG = 1e-3;

/** Their time, of the first form whose result is right. */
async function theirs(ort, kernel, result, row) {
  for (const parts of kernel.operator === 'attention' ? [false, true] : [false]) {
    const form = { ...kernel, parts };
    try {
      row.difference = difference(result, await onnxResult(ort, form));
      row.theirs = median(await onnxTimes(ort, form, SAMPLES));
    } catch (error) {
      if (kernel.operator !== 'attention' || parts) throw error;
      row.note = `ONNX Runtime's MultiHeadAttention fails here (${error.message ?? error}); timed as products and a softmax instead.`;
      continue;
    }
    row.ratio = row.theirs / row.ours;
    if (row.difference < WRONG) return;
    row.note = `ONNX Runtime's ${kernel.operator === 'attention' ? 'MultiHeadAttention' : 'result'} differs by ${row.difference.toExponential(1)} here `
      + `(${row.theirs.toPrecision(3)} ms, ratio ${row.ratio.toPrecision(3)})`;
    if (kernel.operator === 'attention' && !parts) row.note += '; timed as products and a softmax instead.';
  }
  // No form was right.
  delete row.theirs;
  delete row.ratio;
}

async function one(bench, ort, name) {
  const operator = name.split('/')[0];
  const shapes = bench.shapes(name);
  const operands = operandsOf(operator, shapes);
  let ours;
  try {
    ours = await bench.time(name, operands, SAMPLES);
  } catch (error) {
    return { kernel: name, note: error.message ?? String(error) };
  }
  const row = { kernel: name, variant: ours.variant, flops: ours.flops, ours: median(ours.milliseconds) };
  if (!ort) return row;
  try {
    await theirs(ort, { operator, name, shapes, operands }, await bench.result(name, operands), row);
  } catch (error) {
    row.note = error.message ?? String(error);
  }
  return row;
}

async function run(sizes, filter) {
  stopped = false;
  let bench;
  try {
    const kernels = (SIZES[sizes] ?? []).filter((name) => filter === '' || filter === '*' || name.includes(filter));
    if (kernels.length === 0) throw new Error(`No kernel's name has "${filter}" in it.`);
    await init();
    // The browser tells more of its device than wgpu hears.
    const adapter = await navigator.gpu?.requestAdapter();
    const device = adapter ? nameOf(adapter) : '';
    bench = await Bench.open();
    const { ort, missing } = await loadOnnx();
    const onnx = ort?.env.versions.web ?? '';
    postMessage({ type: 'begun', device, onnx, missing });
    const rows = [];
    for (const [i, kernel] of kernels.entries()) {
      if (stopped) break;
      postMessage({ type: 'kernel', kernel, done: i, all: kernels.length });
      const row = await one(bench, ort, kernel);
      rows.push(row);
      postMessage({ type: 'row', row });
    }
    postMessage({ type: 'ended', report: { device, onnx, sizes, rows }, stopped });
  } catch (error) {
    postMessage({ type: 'failed', message: error.message ?? String(error) });
  } finally {
    bench?.free();
  }
}

addEventListener('message', ({ data }) => {
  if (data.type === 'stop') stopped = true;
  else run(data.sizes, data.filter);
});
