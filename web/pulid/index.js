// pulid-wgpu in the browser: a face photo and a prompt in, an image of that person out. See README.md and index.d.ts.

import { fail } from './errors.js';
import { PulidStore as Kept } from './store.js';

export { SETTINGS } from './settings.js';

/** The open instances of this page: they let go of a model's files before it is deleted. */
const open = new Set();

/** What is kept in this browser. */
export const PulidStore = {
  list: () => Kept.list(),
  usage: () => Kept.usage(),
  async delete(name) {
    await Promise.all([...open].map((pulid) => pulid.release(name)));
    await Kept.delete(name);
  },
};

/** What a photo or an identity may be given as, as a named blob, which the worker reads without a copy on this thread. */
function blob(source, what) {
  if (source instanceof Blob) return { name: source.name ?? what, blob: source };
  if (source instanceof Uint8Array || source instanceof ArrayBuffer) return { name: what, blob: new Blob([source]) };
  throw fail('PhotoError', `${what} is not a Blob, a File or a Uint8Array.`);
}

function named(photos) {
  const list = Array.isArray(photos) ? photos : [photos];
  if (list.length < 1 || list.length > 4) throw fail('PhotoError', `A person is read from 1 to 4 photos, not from ${list.length}.`);
  return list.map((photo, index) => blob(photo, `photo ${index + 1}`));
}

/** Waits for its turn, but not longer than the caller does. */
function unlessAborted(turn, signal) {
  if (!signal) return turn;
  return new Promise((resolve, reject) => {
    const give = () => reject(signal.reason);
    if (signal.aborted) return give();
    signal.addEventListener('abort', give, { once: true });
    turn.then(() => {
      signal.removeEventListener('abort', give);
      resolve();
    });
  });
}

/** A short name for a model of this address, for its folder: readable, and another for each address. */
async function nameOf(url) {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(url));
  const hex = [...new Uint8Array(digest, 0, 4)].map((b) => b.toString(16).padStart(2, '0')).join('');
  const { host, pathname } = new URL(url);
  const last = pathname.split('/').filter((p) => p && !/^(resolve|main|tree|raw)$/.test(p)).pop() ?? host;
  return `${decodeURIComponent(last).toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '')}-${hex}`;
}

/** Where the three parts lie: the mini models' for whatever is not given. */
async function locate(given, baseUrl) {
  const mini = { name: 'mini', url: new URL('mini/', baseUrl).href, kind: 'manifest' };
  const own = { sdxl: 'mini/sdxl', adapter: 'mini/pulid_v1.1.safetensors', faces: 'mini' };
  const located = {};
  for (const part of ['sdxl', 'adapter', 'faces']) {
    if (!given[part]) {
      located[part] = { ...mini, path: own[part] };
      continue;
    }
    let url;
    try {
      url = new URL(given[part], globalThis.document?.baseURI);
    } catch {
      throw fail('SettingsError', `${given[part]} is not an address. It should begin with https://.`);
    }
    const last = url.pathname.split('/').pop();
    const kind = /\.(safetensors|gguf|bin|ckpt|pth?|onnx)$/.test(last) ? 'file' : part;
    if (part === 'adapter' && kind !== 'file') {
      throw fail('SettingsError', `${url.href} is not an adapter's file: it should end with .safetensors or .bin.`);
    }
    if (kind !== 'file' && !url.pathname.endsWith('/')) url.pathname += '/';
    const name = await nameOf(url.href);
    located[part] = { name, url: url.href, kind, path: kind === 'file' ? `${name}/${decodeURIComponent(last)}` : name };
  }
  return located;
}

/** An engine in a worker of its own. Make one with `Pulid.create`. */
export class Pulid extends EventTarget {
  #worker;
  #calls = new Map();
  #next = 1;
  #tail = Promise.resolve();
  #dead = null;

  /** Use `Pulid.create`. */
  constructor(worker) {
    super();
    this.#worker = worker;
    worker.onmessage = ({ data }) => this.#heard(data);
    worker.onerror = (event) => {
      event.preventDefault?.();
      // A script that could not be loaded gives an event without a message.
      this.#lose(event.message || navigator.onLine
        ? fail('EngineError', `The engine's worker stopped: ${event.message ?? 'its script could not be loaded'}. Start anew, or reload the page.`)
        : fail('OfflineError', 'The engine could not be loaded without a connection. Connect to the internet and try again.'));
    };
  }

  /** Starts a worker, opens the device, and fetches what is not kept yet. */
  static async create({ models = {}, baseUrl, wasmUrl, shaderF16, onProgress, signal } = {}) {
    signal?.throwIfAborted();
    const base = new URL(baseUrl ?? 'models/', globalThis.document?.baseURI).href;
    const located = await locate(models, base.endsWith('/') ? base : `${base}/`);
    const pulid = new Pulid(new Worker(new URL('./worker.js', import.meta.url), { type: 'module', name: 'pulid' }));
    try {
      const args = { wasmUrl: wasmUrl && new URL(wasmUrl, globalThis.document?.baseURI).href, shaderF16, models: located };
      const { device, defaults } = await pulid.#call('open', args, { onProgress, signal });
      pulid.device = device;
      pulid.defaults = defaults;
    } catch (error) {
      await pulid.close();
      throw error;
    }
    open.add(pulid);
    return pulid;
  }

  /** Makes images. */
  async generate({ signal, onProgress, photos, identity, ...settings } = {}) {
    const options = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
    if (photos && photos.length !== 0) options.photos = named(photos);
    if (identity) options.identity = blob(identity, 'identity').blob;
    const { images, ...made } = await this.#call('generate', { options }, { signal, onProgress });
    return { images: images.map((bytes) => new Blob([bytes], { type: 'image/png' })), ...made };
  }

  /** Reads a person from photos. */
  async embed(photos, { face, signal, onProgress } = {}) {
    const { identity } = await this.#call('embed', { photos: named(photos), face }, { signal, onProgress });
    return new Blob([identity], { type: 'application/octet-stream' });
  }

  /** The part of a photo that counts. */
  async crop(photo, { signal, onProgress } = {}) {
    const { png, faces } = await this.#call('crop', { photo: blob(photo, 'photo') }, { signal, onProgress });
    return { image: new Blob([png], { type: 'image/png' }), faces };
  }

  /** Closes the files of a kept model; what needs them opens (or fetches) them again. */
  async release(name) {
    if (!this.#dead) await this.#call('release', { name });
  }

  /** Ends what runs and frees the device. */
  async close() {
    if (this.#dead) return;
    this.#end(fail('AbortError', 'The engine was closed.'));
    // The worker lets go of its files first, so that the next one finds them free; a worker that hangs is not waited for.
    await new Promise((resolve) => {
      setTimeout(resolve, 500);
      this.#worker.onmessage = ({ data }) => data.closed && resolve();
      this.#worker.postMessage({ call: 'close' });
    });
    this.#worker.terminate();
  }

  /** One call at a time: the next waits for the one before, whatever became of that. */
  #call(call, args, { signal, onProgress } = {}) {
    const before = this.#tail;
    const turn = unlessAborted(before, signal).then(() => this.#post(call, args, signal, onProgress));
    this.#tail = Promise.allSettled([before, turn]);
    return turn;
  }

  #post(call, args, signal, onProgress) {
    if (this.#dead) throw this.#dead;
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      const cancel = () => this.#worker.postMessage({ cancel: id });
      const done = (settle) => (value) => {
        signal?.removeEventListener('abort', cancel);
        settle(value);
      };
      this.#calls.set(id, { resolve: done(resolve), reject: done(reject), onProgress });
      signal?.addEventListener('abort', cancel);
      this.#worker.postMessage({ id, call, args });
    });
  }

  #heard({ id, event, result, error }) {
    const call = this.#calls.get(id);
    if (!call) return;
    if (event) {
      call.onProgress?.(event);
      this.dispatchEvent(new CustomEvent(event.type, { detail: event }));
      return;
    }
    this.#calls.delete(id);
    if (!error) return call.resolve(result);
    const thrown = fail(error.name, error.message);
    if (error.name === 'EngineError' || (error.name === 'DeviceError' && /\blost\b/i.test(error.message))) this.#lose(thrown);
    call.reject(thrown);
  }

  /** Nothing works after this: the wasm or its device is gone. */
  #lose(error) {
    if (this.#dead) return;
    this.#end(error);
    this.#worker.terminate();
    this.dispatchEvent(new CustomEvent('lost', { detail: error }));
  }

  #end(error) {
    open.delete(this);
    this.#dead = error;
    for (const call of this.#calls.values()) call.reject(error);
    this.#calls.clear();
  }
}
