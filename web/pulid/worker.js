// The worker's side of the package: the engine lives here, and so do the files it reads.
//
// Messages in: `{ id, call, args }`, `{ cancel: id }` or
// `{ call: 'close' }`. Messages out: `{ id, event }` any number of times, then `{ id, result }`
// or `{ id, error: { name, message } }`. The page sends one call at a time.

import { fail } from './errors.js';
import { bytesOf } from './photos.js';
import { Store } from './store.js';

let engine;
let store;
/** Where each model lies: `{ name, url, kind, path }` for sdxl, adapter and faces. */
let models;
/** Open files of the mounted models, by model name. */
const mounted = new Map();
/** The call that runs: `{ id, abort, inEngine }`. */
let running = null;

self.onmessage = async ({ data: { id, call, args, cancel } }) => {
  if (cancel !== undefined) {
    if (running?.id === cancel) {
      running.abort.abort();
      if (running.inEngine) engine?.cancel();
    }
    return;
  }
  if (call === 'close') {
    // Also while something runs: nobody waits for that any more, and the page ends this worker next.
    for (const files of mounted.values()) files.forEach((file) => file.close());
    postMessage({ closed: true });
    return;
  }
  running = { id, abort: new AbortController(), inEngine: false };
  try {
    const { result, transfer = [] } = await calls[call](args, (event) => report(id, event));
    postMessage({ id, result }, transfer);
  } catch (error) {
    postMessage({ id, error: plain(error) });
  } finally {
    running = null;
  }
};

function report(id, event) {
  // The preview's pixels move over; everything else is small.
  if (event.rgba) event = { ...event, rgba: own(event.rgba) };
  postMessage({ id, event }, event.rgba ? [event.rgba.buffer] : []);
}

/** Bytes whose buffer holds nothing else and so may be handed away: the wasm's memory may not. */
function own(bytes) {
  return bytes.byteLength === bytes.buffer.byteLength ? bytes : bytes.slice();
}

function plain(error) {
  if (error instanceof WebAssembly.RuntimeError) {
    return { name: 'EngineError', message: `The engine stopped unexpectedly (${error.message}). Start anew; if it happens again, `
      + 'try a smaller image.' };
  }
  // What allocation fails with in JavaScript and in WebAssembly.
  if (error instanceof RangeError) {
    return { name: 'DeviceError', message: `The memory did not suffice (${error.message}): out of memory. Try a smaller image, `
      + '8 bits (quantize q8), or close other tabs.' };
  }
  return { name: error?.name ?? 'Error', message: error?.message ?? String(error) };
}

/** The wasm. Imported here and not above, so that a missing or broken build is an error of a call, with its reason. */
async function load(wasmUrl) {
  try {
    const wasm = await import('./pulid_wasm.js');
    await wasm.default({ module_or_path: wasmUrl ?? new URL('./pulid_wasm_bg.wasm', import.meta.url) });
    return wasm;
  } catch (error) {
    throw fail(navigator.onLine ? 'EngineError' : 'OfflineError',
      `The engine could not be loaded (${error.message}). Reload the page while connected.`);
  }
}

/** Runs something in the engine, so that a cancellation reaches it. */
async function inEngine(work) {
  running.abort.signal.throwIfAborted();
  running.inEngine = true;
  try {
    return await work();
  } finally {
    if (running) running.inEngine = false;
  }
}

/** Fetches and mounts what is not mounted yet. */
async function ensure(names, on) {
  const wanted = new Map(names.map((n) => [models[n].name, models[n]]));
  const missing = [...wanted.values()].filter(({ name }) => !mounted.has(name));
  if (missing.length === 0) return;
  await store.fetch(missing, { signal: running.abort.signal, on });
  for (const { name } of missing) {
    const files = await store.open(name);
    mounted.set(name, files);
    try {
      for (const { path, file } of files) engine.mount(`${name}/${path}`, file);
    } catch (error) {
      release(name);
      throw error;
    }
  }
}

function release(name) {
  if (!mounted.has(name)) return;
  engine.unmount(`${name}/`);
  for (const { close } of mounted.get(name)) close();
  mounted.delete(name);
}

async function readPhotos(photos) {
  return Promise.all(photos.map(async ({ name, blob }) => ({ name, bytes: await bytesOf(blob) })));
}

const calls = {
  async open({ wasmUrl, shaderF16, models: given }, on) {
    models = given;
    on({ type: 'stage', stage: 'starting' });
    if (!navigator.gpu) {
      throw fail('DeviceError', self.isSecureContext
        ? 'This browser has no WebGPU, which the networks run on. Current versions of Chrome and Edge, of Safari 26 and of Firefox on '
          + 'Windows and macOS have it; on Linux, Chrome may need the flag chrome://flags/#enable-unsafe-webgpu.'
        : 'WebGPU works on secure pages alone. Open this page over https or on localhost.');
    }
    const wasm = await load(wasmUrl);
    store = new Store(wasm.Sha256);
    engine = await inEngine(() => wasm.Engine.open(shaderF16 === undefined ? {} : { shaderF16 }));
    await ensure(['sdxl', 'adapter', 'faces'], on);
    return { result: { device: engine.device(), defaults: engine.defaults(models.sdxl.path) } };
  },

  async crop({ photo }, on) {
    await ensure(['faces'], on);
    const [bytes] = await readPhotos([photo]);
    const { png, faces } = await inEngine(() => engine.crop(models.faces.path, bytes));
    const moved = own(png);
    return { result: { png: moved, faces }, transfer: [moved.buffer] };
  },

  async embed({ photos, face }, on) {
    await ensure(['faces', 'adapter'], on);
    const bytes = await readPhotos(photos);
    const paths = { faces: models.faces.path, adapter: models.adapter.path };
    const identity = own(await inEngine(() => engine.embed(paths, bytes, face, on)));
    return { result: { identity }, transfer: [identity.buffer] };
  },

  async generate({ options }, on) {
    await ensure(['sdxl', 'adapter', 'faces'], on);
    const { photos, identity, ...settings } = options;
    if (photos) settings.photos = await readPhotos(photos);
    if (identity) settings.identity = new Uint8Array(await identity.arrayBuffer());
    const paths = { sdxl: models.sdxl.path, adapter: models.adapter.path, faces: models.faces.path };
    const { images, ...made } = await inEngine(() => engine.generate(paths, settings, on));
    const moved = images.map(own);
    return { result: { images: moved, ...made }, transfer: moved.map((image) => image.buffer) };
  },

  async release({ name }) {
    release(name);
    return { result: null };
  },
};
