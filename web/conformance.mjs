// Runs the exported conformance checks on a WebGPU device, in a browser or in Node, without any of the Rust program.
//
//     cargo xtask export-conformance DIR
//     node web/conformance.mjs DIR [--filter TEXT] [--report FILE.json] [--driver vulkan|...]   (needs `npm install webgpu`)
//
// A check passes when every element of its result is within `relative` of |want| + rms(want), and no byte of the guard
// regions before and behind the result and the scratch buffers has changed.

/** The value of a half-precision number's bits. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The result's elements as numbers. */
function values(bytes, output) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const read = {
    f16: (i) => half(view.getUint16(2 * i, true)),
    // The reference's values are in f32.
    u32: (i) => Math.fround(view.getUint32(4 * i, true)),
    f32: (i) => view.getFloat32(4 * i, true),
  }[output.dtype];
  return Float64Array.from({ length: output.count }, (_, i) => read(i));
}

/** The largest error in units of the tolerance, and where it is. */
export function compare(got, want, output) {
  let squares = 0;
  let finite = 0;
  // Beside large numbers any error of the others would be small.
  for (const w of want) if (Math.abs(w) <= 4096) { squares += w * w; finite += 1; }
  const rms = Math.sqrt(squares / Math.max(finite, 1));
  let worst = { worst: 0, index: 0, got: 0, want: 0 };
  for (let i = 0; i < want.length; i++) {
    const [g, w] = [got[i], want[i]];
    let error;
    // WGSL lets implementations flush denormals.
    const flushed = g === 0 && Math.abs(w) < (output.dtype === 'f16' ? 2 ** -14 : 2 ** -126);
    if (flushed || g === w || (Number.isNaN(g) && Number.isNaN(w))) error = 0;
    else if (!Number.isFinite(g) || !Number.isFinite(w)) {
      // Half precision may round the largest finite values either way.
      const edge = output.dtype === 'f16' && Math.min(Math.abs(g), Math.abs(w)) >= 65000 && Math.sign(g) === Math.sign(w);
      error = edge ? 0 : Infinity;
    } else error = Math.abs(g - w) / Math.max(output.relative * (Math.abs(w) + rms), Number.MIN_VALUE);
    if (error > worst.worst) worst = { worst: error, index: i, got: g, want: w };
  }
  return worst;
}

/** A device with everything that checks may use, and what it is called. */
export async function open(gpu) {
  const adapter = await gpu?.requestAdapter();
  if (!adapter) throw new Error('there is no WebGPU adapter');
  const wanted = ['shader-f16', 'subgroups'].filter((f) => adapter.features.has(f));
  const names = ['maxStorageBufferBindingSize', 'maxBufferSize', 'maxComputeInvocationsPerWorkgroup', 'maxComputeWorkgroupSizeX',
    'maxComputeWorkgroupSizeY', 'maxComputeWorkgroupStorageSize', 'maxStorageBuffersPerShaderStage'];
  const requiredLimits = Object.fromEntries(names.map((name) => [name, adapter.limits[name]]));
  const device = await adapter.requestDevice({ requiredFeatures: wanted, requiredLimits });
  const { info } = adapter;
  const lanes = info.subgroupMinSize === info.subgroupMaxSize && device.features.has('subgroups') ? info.subgroupMinSize : 0;
  return { device, lanes, name: nameOf(adapter) };
}

/** What an adapter is called, as far as it tells. */
export function nameOf(adapter) {
  const { vendor, architecture, device, description } = adapter.info;
  return [vendor, architecture, device, description].filter(Boolean).join(' ');
}

/** Why a check is expected to fail on a device, if it is: the program's `Expectations`. */
export function expectation(suite, adapter, backend, id) {
  const fits = (pattern, text) => {
    if (!/[*?]/.test(pattern)) return text.includes(pattern);
    const escaped = pattern.replace(/[.+^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*').replaceAll('?', '.');
    return new RegExp(`^${escaped}$`, 's').test(text);
  };
  // Browsers write in small letters what drivers call themselves.
  const named = (e) => fits(e.adapter.toLowerCase(), adapter.toLowerCase()) && fits(e.backend, backend);
  return (suite.expected ?? []).find((e) => named(e) && fits(e.id, id))?.reason;
}

/** Why a device cannot run a check, or nothing. */
function obstacle(check, suite, opened, texts) {
  if (check.subgroup_lanes && check.subgroup_lanes !== opened.lanes) return `needs subgroups of ${check.subgroup_lanes} lanes`;
  const half = check.dispatches.some((d) => /^enable f16;/m.test(texts.get(d.shader)));
  if (half && !opened.device.features.has('shader-f16')) return 'the device has no shader-f16';
  const largest = Math.max(check.output.bytes + suite.guard, ...check.operands.map((o) => o.bytes));
  const most = opened.device.limits.maxStorageBufferBindingSize;
  return largest > most ? `a tensor of ${largest} bytes is over the largest binding, ${most}` : undefined;
}

/** Runs one check: `{ outcome, worst, detail }`. */
async function one(check, suite, opened, texts, data, kernels) {
  const { device } = opened;
  const size = (bytes) => Math.max(16, Math.ceil(bytes / 16) * 16);
  const made = [];
  const buffer = (bytes, usage, content) => {
    const b = device.createBuffer({ size: size(bytes), usage: usage | GPUBufferUsage.COPY_DST, mappedAtCreation: true });
    new Uint8Array(b.getMappedRange()).set(content);
    b.unmap();
    made.push(b);
    return b;
  };
  const { STORAGE, COPY_SRC, UNIFORM, MAP_READ, COPY_DST } = GPUBufferUsage;
  device.pushErrorScope('out-of-memory');
  device.pushErrorScope('validation');
  const operands = check.operands.map((o) => buffer(o.bytes, STORAGE, data.subarray(o.offset, o.offset + o.bytes)));
  // What is bound begins behind one guard and ends with the other.
  const guarded = (bytes) => {
    const all = suite.guard + size(bytes) + suite.guard;
    return { buffer: buffer(all, STORAGE | COPY_SRC, new Uint8Array(all).fill(suite.sentinel)), offset: suite.guard };
  };
  const result = guarded(check.output.bytes);
  const scratch = check.scratch.map(guarded);
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  for (const d of check.dispatches) {
    const shader = suite.shaders[d.shader];
    const key = JSON.stringify([d.shader, d.constants]);
    if (!kernels.has(key)) {
      const type = (writable) => ({ type: writable ? 'storage' : 'read-only-storage' });
      const entries = [{ type: 'uniform' }, ...shader.writable.map(type)]
        .map((b, binding) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: b }));
      const layout = device.createBindGroupLayout({ entries });
      const module = device.createShaderModule({ code: texts.get(d.shader) });
      kernels.set(key, device.createComputePipeline({
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: shader.entry, constants: d.constants },
      }));
    }
    const pipeline = kernels.get(key);
    const bound = (slot) => {
      if (slot === 'output') return result;
      if (slot === 'unused') return { buffer: operands[0] };
      return 'input' in slot ? { buffer: operands[slot.input] } : scratch[slot.scratch];
    };
    const entries = [{ buffer: buffer(d.params.length, UNIFORM, d.params) }, ...d.bindings.map(bound)]
      .map((resource, binding) => ({ binding, resource }));
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
    pass.dispatchWorkgroups(...d.grid);
  }
  pass.end();
  const staged = [result, ...scratch].map(({ buffer: from }) => {
    const to = device.createBuffer({ size: from.size, usage: MAP_READ | COPY_DST });
    encoder.copyBufferToBuffer(from, 0, to, 0, from.size);
    made.push(to);
    return to;
  });
  device.queue.submit([encoder.finish()]);
  const errors = [await device.popErrorScope(), await device.popErrorScope()].filter(Boolean);
  if (errors.length) {
    made.forEach((b) => b.destroy());
    return { outcome: 'fail', detail: errors[0].message };
  }
  await Promise.all(staged.map((b) => b.mapAsync(GPUMapMode.READ)));
  const bytes = staged.map((b) => new Uint8Array(b.getMappedRange()).slice());
  made.forEach((b) => b.destroy());
  const used = [check.output.bytes, ...check.scratch];
  const changed = (guard) => guard.filter((b) => b !== suite.sentinel).length;
  const around = (all, i) => changed(all.subarray(0, suite.guard)) + changed(all.subarray(suite.guard + used[i]));
  const stray = bytes.reduce((n, all, i) => n + around(all, i), 0);
  const want = new Float32Array(data.slice(check.output.want.offset, check.output.want.offset + check.output.want.bytes).buffer);
  const found = compare(values(bytes[0].subarray(suite.guard), check.output), want, check.output);
  const passed = found.worst <= 1 && stray === 0;
  const detail = passed ? undefined
    : `error ${found.worst < 1e6 ? found.worst.toFixed(3) : found.worst.toExponential(3)} of the tolerance at element ${found.index}: got ${found.got}, want ${found.want}`
      + (stray ? `; ${stray} bytes outside the result were written` : '');
  return { outcome: passed ? 'pass' : 'fail', worst: Number.isFinite(found.worst) ? found.worst : null, detail };
}

/**
 * Runs the checks whose id contains `filter` and gives the report, in the form of `pulid conformance --report FILE.json`.
 * `driver` says whose WebGPU it is; `load(name)` gives a file of the exported folder as a Uint8Array; `seen(entry, done, all)` hears of each check.
 */
export async function run({ gpu, load, driver = '', filter = '', seen = () => {} }) {
  const text = new TextDecoder();
  const suite = JSON.parse(text.decode(await load('cases.json')));
  const data = await load('data.bin');
  const texts = new Map();
  for (const [name, shader] of Object.entries(suite.shaders)) texts.set(name, text.decode(await load(shader.file)));
  let opened = await open(gpu);
  let kernels = new Map();
  const chosen = suite.checks.filter((check) => check.id.includes(filter));
  const summary = { pass: 0, fail: 0, skip: 0, expected_fail: 0 };
  const checks = [];
  for (const check of chosen) {
    const why = obstacle(check, suite, opened, texts);
    let entry;
    if (why) entry = { id: check.id, outcome: 'skip', worst: null, milliseconds: null, detail: why };
    else {
      const start = performance.now();
      const found = await one(check, suite, opened, texts, data, kernels).catch((e) => ({ outcome: 'fail', detail: String(e) }));
      entry = { id: check.id, worst: null, milliseconds: performance.now() - start, ...found };
      if (found.outcome === 'fail' && found.worst === undefined) {
        // A kernel may take the device with it; the others deserve a fresh one.
        opened = await open(gpu);
        kernels = new Map();
      }
    }
    const reason = why ? undefined : expectation(suite, `${opened.name} ${driver}`, 'webgpu', check.id);
    if (reason && entry.outcome === 'fail') Object.assign(entry, { outcome: 'expected_fail', detail: `${reason}: ${entry.detail}` });
    else if (reason) Object.assign(entry, { outcome: 'fail', detail: `passes, though it is listed as failing: ${reason}` });
    summary[entry.outcome] += 1;
    checks.push(entry);
    seen(entry, checks.length, chosen.length);
  }
  const date = new Date().toISOString().slice(0, 10);
  return { program: suite.program, date, device: { name: opened.name, driver, backend: 'webgpu' }, summary, checks };
}

/** The command line, in Node. */
async function main() {
  const { readFile, writeFile, rename } = await import('node:fs/promises');
  const { createRequire } = await import('node:module');
  const { join, resolve } = await import('node:path');
  const { pathToFileURL } = await import('node:url');
  const argument = (name) => (process.argv.includes(name) ? process.argv[process.argv.indexOf(name) + 1] : undefined);
  const folder = process.argv[2];
  if (!folder || folder.startsWith('--')) {
    console.error('usage: node conformance.mjs DIR [--filter TEXT] [--report FILE.json] [--driver BACKEND]');
    process.exit(2);
  }
  // The package lies with whoever runs this, not with this file.
  const found = createRequire(join(process.cwd(), 'x.js')).resolve('webgpu');
  const { create, globals } = await import(pathToFileURL(resolve(found)));
  Object.assign(globalThis, globals);
  const driver = argument('--driver');
  const gpu = create(driver ? [`backend=${driver}`] : []);
  const load = async (name) => new Uint8Array(await readFile(join(folder, name)));
  const seen = (entry, done, all) => {
    if (entry.outcome === 'fail') console.log(`FAIL ${entry.id}: ${entry.detail}`);
    if (done % 100 === 0) console.error(`${done} of ${all}`);
  };
  const { version } = JSON.parse(await readFile(resolve(found, '..', 'package.json'), 'utf8'));
  const report = await run({ gpu, load, driver: `Dawn of npm's webgpu ${version}`, filter: argument('--filter'), seen });
  const s = report.summary;
  console.log(`${report.device.name}: ${s.pass} pass, ${s.fail} fail, ${s.skip} skipped`);
  const path = argument('--report');
  if (path) {
    await writeFile(`${path}.part`, JSON.stringify(report, null, 1));
    await rename(`${path}.part`, path);
  }
  process.exit(s.fail ? 1 : 0);
}

if (typeof process !== 'undefined' && process.argv?.[1] && import.meta.url.endsWith('/conformance.mjs') && process.argv[1].endsWith('conformance.mjs')) await main();
