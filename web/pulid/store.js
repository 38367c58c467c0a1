// Weights: fetched in portions, held to their hashes and kept in the origin private file system (OPFS).
//
//     pulid-wgpu/records/NAME.json    what is known of the model NAME: its URL, its manifest, which files are whole
//     pulid-wgpu/files/NAME/PATH      a file that fits its hash
//     pulid-wgpu/files/NAME/PATH.part one that is still being fetched; the next visit goes on where it ends
//
// `PulidStore` (list, delete, usage) works on any thread. `Store` needs a worker: only there files can be written in place,
// which is what keeps memory bounded by one network chunk however large a model is. Where the browser keeps nothing for this page, or
// too little, a `Store` says so and keeps weights in memory until its worker ends.

import { plan } from './manifest.js';
import { fail, megabytes, networkError } from './errors.js';
import { MemoryFolder } from './memory.js';

const ROOT = 'pulid-wgpu';
/** Bytes asked for at once: large enough for speed, small enough that a broken connection costs little. */
const PORTION = 8 << 20;
/** Files up to this size are read to memory where another tab holds them; larger ones would not fit beside the device's. */
const SMALL = 64 << 20;
const RETRIES = 3;
/** Bytes of weights that are kept in memory where the browser has no room: more would end the page. */
const MEMORY = 4 * 2 ** 30;

/** The root of the files in memory, once weights go there. */
let memory = null;

async function folder(kind, create) {
  if (memory) return below(memory, kind, create);
  if (!globalThis.navigator?.storage?.getDirectory) {
    throw fail('StorageError', 'This browser has no place to keep weights in (no origin private file system). '
      + 'A current Chrome, Edge, Firefox or Safari has one, outside of private windows and over https or on localhost.');
  }
  try {
    return await below(await navigator.storage.getDirectory(), kind, create);
  } catch (error) {
    throw fail('StorageError', `The browser does not let this page keep weights (${error.message}). `
      + 'Private windows and blocked site data are the usual reasons.');
  }
}

async function below(root, kind, create) {
  let at = root;
  try {
    for (const name of [ROOT, kind]) at = await at.getDirectoryHandle(name, { create });
  } catch (error) {
    if (error.name === 'NotFoundError') return null;
    throw error;
  }
  return at;
}

/** Makes a file and deletes it: whether the browser keeps files for this page is known only then. */
async function probe() {
  const name = `probe-${Math.random()}`;
  const at = await folder('records', true);
  const file = await at.getFileHandle(name, { create: true });
  try {
    const handle = await file.createSyncAccessHandle();
    const written = handle.write(new Uint8Array(1), { at: 0 });
    handle.close();
    if (written < 1) throw new DOMException('no room', 'QuotaExceededError');
  } finally {
    await at.removeEntry(name);
  }
}

/** An error of too little room, with what there should be. */
function noRoom(message) {
  return Object.assign(fail('StorageError', message), { noRoom: true });
}

async function entry(directory, path, create = false) {
  const names = path.split('/');
  const last = names.pop();
  try {
    for (const name of names) directory = await directory.getDirectoryHandle(name, { create });
    return await directory.getFileHandle(last, { create });
  } catch (error) {
    if (error.name === 'NotFoundError' && !create) return null;
    throw error;
  }
}

async function remove(directory, path) {
  const names = path.split('/');
  const last = names.pop();
  try {
    for (const name of names) directory = await directory.getDirectoryHandle(name);
    await directory.removeEntry(last);
  } catch (error) {
    if (error.name !== 'NotFoundError') throw held(error, path);
  }
}

/** What the file system says of a file that somebody has open, in words. */
function held(error, path) {
  if (error.name !== 'NoModificationAllowedError' && error.name !== 'InvalidStateError') return error;
  return fail('StorageError', `${path} is in use by another tab of this site. Close that tab, then try again.`);
}

async function readRecord(name) {
  const records = await folder('records', false);
  const file = records && await entry(records, `${name}.json`);
  if (!file) return null;
  try {
    const record = JSON.parse(await (await file.getFile()).text());
    return record && Array.isArray(record.manifest) && typeof record.whole === 'object' ? record : null;
  } catch {
    return null; // A visit that ended while it was written. The files are still there and are held to their hashes anew.
  }
}

async function writeRecord(name, record) {
  const file = await entry(await folder('records', true), `${name}.json`, true);
  const handle = await file.createSyncAccessHandle();
  try {
    handle.truncate(0);
    handle.write(new TextEncoder().encode(JSON.stringify(record)), { at: 0 });
    handle.flush();
  } finally {
    handle.close();
  }
}

async function size(directory) {
  let bytes = 0;
  for await (const child of directory.values()) {
    bytes += child.kind === 'directory' ? await size(child) : (await child.getFile()).size;
  }
  return bytes;
}

/** What is kept. */
export const PulidStore = {
  /** The kept models: `{ name, url, bytes, complete }`. */
  async list() {
    const files = await folder('files', false);
    const models = [];
    if (files) {
      for await (const child of files.values()) {
        const record = await readRecord(child.name);
        const complete = Boolean(record) && record.manifest.every((file) => record.whole[file.path]);
        models.push({ name: child.name, url: record?.url ?? '', bytes: await size(child), complete });
      }
    }
    return models.sort((a, b) => (a.name < b.name ? -1 : 1));
  },

  /** Deletes a kept model; nothing happens where there is none. */
  async delete(name) {
    for (const [kind, key] of [['records', `${name}.json`], ['files', name]]) {
      const at = await folder(kind, false);
      try {
        await at?.removeEntry(key, { recursive: true });
      } catch (error) {
        if (error.name !== 'NotFoundError') throw held(error, name);
      }
    }
  },

  /** Bytes that this site keeps in all, and how many it may keep. */
  async usage() {
    if (memory) return { usage: 0, quota: 0 };
    const { usage = 0, quota = 0 } = await (navigator.storage?.estimate?.() ?? {});
    return { usage, quota };
  },
};

/** Fetches what is missing and opens what is there. */
export class Store {
  /** `Sha256` is the wasm's: the platform's own digest wants a whole file in memory. */
  constructor(Sha256) {
    this.Sha256 = Sha256;
  }

  /**
   * Makes these models (`{ name, url, kind }`) whole. `on` hears `{ stage: 'fetching weights' }`, then the bytes of all of them
   * together. A model is fetched by one tab at a time; the others wait and find it there. Where the browser keeps nothing, or has no
   * room, it hears a note, and the weights stay in memory.
   */
  async fetch(models, { signal, on }) {
    const toMemory = (why) => {
      memory = new MemoryFolder();
      on({ type: 'note', text: `${why} The weights stay in memory instead, and are fetched again at the next visit.` });
    };
    if (!memory) {
      await probe().catch((error) => toMemory(error.name === 'StorageError' ? error.message
        : `The browser does not let this page keep weights (${error.message}).`));
    }
    try {
      return await this.#fetch(models, signal, on);
    } catch (error) {
      if (memory || !(error.noRoom || error.name === 'QuotaExceededError')) throw error;
      // What is asked for in all, of which a part may be kept already.
      const plans = await Promise.all(models.map((model) => plan(model, null, signal)));
      const total = plans.flat().reduce((sum, file) => sum + (file.bytes ?? 0), 0);
      if (total > MEMORY) throw error;
      toMemory(error.message);
      return this.#fetch(models, signal, on);
    }
  }

  async #fetch(models, signal, on) {
    const work = async (rest, plans) => {
      if (rest.length === 0) return this.#fetchAll(plans, signal, on);
      const [model, ...more] = rest;
      const locked = async () => work(more, [...plans, { model, ...await this.#plan(model, signal) }]);
      if (!navigator.locks) return locked();
      const lock = `${ROOT} ${model.name}`;
      const { held: locks = [] } = await navigator.locks.query();
      if (locks.some((l) => l.name === lock)) on({ type: 'note', text: 'Another tab is fetching the same weights; waiting for it.' });
      return navigator.locks.request(lock, { signal }, locked);
    };
    // Locks are taken in one order everywhere, so that two tabs never wait for each other.
    return work([...models].sort((a, b) => (a.name < b.name ? -1 : 1)), []);
  }

  /** The model's files and what is known of those that are here. */
  async #plan(model, signal) {
    const kept = await readRecord(model.name);
    const record = { url: model.url, manifest: await plan(model, kept, signal), whole: {} };
    const files = await folder('files', true);
    const directory = await files.getDirectoryHandle(model.name, { create: true });
    const missing = [];
    for (const file of record.manifest) {
      const known = kept?.whole[file.path];
      const fits = known && (file.sha256 ? known.sha256 === file.sha256 : kept.url === model.url);
      const there = fits && await entry(directory, known.stored);
      if (there && (await there.getFile()).size === known.bytes) {
        record.whole[file.path] = known;
        continue;
      }
      if (known) await remove(directory, known.stored); // Another version, which is no beginning of this one.
      missing.push(file);
    }
    for (const [path, { stored }] of Object.entries(kept?.whole ?? {})) {
      if (!record.manifest.some((file) => file.path === path)) await remove(directory, stored);
    }
    return { record, directory, missing, changed: JSON.stringify(kept) !== JSON.stringify(record) };
  }

  async #fetchAll(plans, signal, on) {
    const missing = plans.flatMap((p) => p.missing);
    // A length nobody told is counted as it comes.
    const total = missing.reduce((sum, file) => sum + (file.bytes ?? 0), 0);
    if (missing.length > 0) {
      on({ type: 'stage', stage: 'fetching weights' });
      const { usage, quota } = await PulidStore.usage();
      if (quota && total > quota - usage) {
        throw noRoom(`The weights need ${megabytes(total)}; the browser lets this site keep ${megabytes(quota - usage)} more. `
          + 'Delete kept weights or free space on the disk.');
      }
    }
    let before = 0;
    for (const { model, record, directory, missing: files, changed } of plans) {
      if (changed) await writeRecord(model.name, record);
      for (const file of files) {
        const report = (done) => on({
          type: 'progress', stage: 'fetching weights', done: before + done, total: Math.max(total, before + done),
        });
        const whole = await this.#whole(directory, file, signal, report);
        record.whole[file.path] = whole;
        before += whole.bytes;
        await writeRecord(model.name, record);
      }
    }
  }

  /** Fetches one file, or the rest of it, and holds it to its hash. */
  async #whole(directory, file, signal, report) {
    const part = `${file.path}.part`;
    // A whole file that no record speaks of is as good as a part: its hash decides.
    const orphan = await entry(directory, file.path);
    if (orphan && !(await entry(directory, part)) && orphan.move) await orphan.move(part.split('/').pop());
    const handle = await entry(directory, part, true);
    const into = await handle.createSyncAccessHandle().catch((error) => { throw held(error, file.path); });
    let sha256;
    let bytes;
    try {
      const target = new Part(into, this.Sha256);
      if (file.bytes === null || into.getSize() > file.bytes) into.truncate(0);
      await target.rehash(signal);
      const resumed = target.at > 0;
      report(target.at);
      await download(file, target, signal, report);
      sha256 = target.finish();
      if (resumed && file.sha256 && sha256 !== file.sha256) {
        // The beginning may be that of an older version: once more from the start before anybody is told.
        target.restart();
        await download(file, target, signal, report);
        sha256 = target.finish();
      }
      into.flush();
      bytes = target.at;
    } catch (error) {
      throw error.name === 'QuotaExceededError'
        ? noRoom(`There is no room left for ${file.path}. Delete kept weights or free space on the disk.`) : error;
    } finally {
      into.close();
    }
    if (file.sha256 && sha256 !== file.sha256) {
      await remove(directory, part);
      throw fail('ModelError', `${file.path} did not arrive as its manifest says: its SHA-256 is ${sha256}, not ${file.sha256}. `
        + 'It was deleted. Try again; if that does not help, the file at its address is not the one the manifest means.');
    }
    // Where files cannot be renamed the part keeps its name, and the record says that it is whole.
    let stored = part;
    if (handle.move) {
      await remove(directory, file.path);
      await handle.move(file.path.split('/').pop());
      stored = file.path;
    }
    return { stored, bytes, sha256 };
  }

  /**
   * Opens the files of a model that is whole: `[{ path, file, close }]`, where `file` is a read-only access handle, or the bytes
   * of a small file that another tab holds.
   */
  async open(name) {
    const record = await readRecord(name);
    const directory = await (await folder('files', true)).getDirectoryHandle(name);
    const opened = [];
    try {
      for (const { path } of record.manifest) {
        const handle = await entry(directory, record.whole[path].stored);
        opened.push({ path, ...await openFile(handle, path) });
      }
    } catch (error) {
      for (const { close } of opened) close();
      throw error;
    }
    return opened;
  }
}

async function openFile(handle, path) {
  try {
    // Browsers that do not know the mode ignore it and lock the file for this tab.
    const file = await handle.createSyncAccessHandle({ mode: 'read-only' });
    return { file, close: () => file.close() };
  } catch (error) {
    if (error.name !== 'NoModificationAllowedError' && error.name !== 'InvalidStateError') throw error;
  }
  const blob = await handle.getFile();
  if (blob.size > SMALL) {
    throw fail('StorageError', `Another tab of this site holds ${path}, and this browser lets only one tab read it at a time. `
      + 'Close the other tab, then try again.');
  }
  return { file: new Uint8Array(await blob.arrayBuffer()), close() {} };
}

/** A file being written, with the hash of what it holds so far. */
class Part {
  constructor(handle, Sha256) {
    this.handle = handle;
    this.Sha256 = Sha256;
    this.at = 0;
    this.restarts = 0;
    this.hash = new Sha256();
  }

  /** Takes in what an earlier visit left. */
  async rehash(signal) {
    const end = this.handle.getSize();
    const buffer = new Uint8Array(Math.min(end, PORTION));
    while (this.at < end) {
      const read = this.handle.read(buffer, { at: this.at });
      this.hash.update(buffer.subarray(0, read));
      this.at += read;
      await breath(signal);
    }
  }

  write(chunk) {
    // Fewer bytes than asked for are written where the disk is full.
    if (this.handle.write(chunk, { at: this.at }) < chunk.length) throw new DOMException('disk full', 'QuotaExceededError');
    this.hash.update(chunk);
    this.at += chunk.length;
  }

  restart() {
    this.restarts += 1;
    this.handle.truncate(0);
    this.at = 0;
    this.hash.free?.();
    this.hash = new this.Sha256();
  }

  finish() {
    return this.hash.finish();
  }
}

/** Lets messages in (a cancellation) during long work. */
async function breath(signal) {
  await new Promise((resolve) => setTimeout(resolve));
  signal.throwIfAborted();
}

/** Brings the part to its full length, with a few retries where the connection breaks. */
async function download(file, part, signal, report) {
  for (let retry = 0; ;) {
    const from = part.at;
    if (from > 0 && from === file.bytes) return;
    if (part.restarts > RETRIES) throw fail('ModelError', `${file.url} is not the file that its manifest means: it has another length.`);
    try {
      if (await portion(file, part, signal, report)) return;
    } catch (error) {
      signal.throwIfAborted();
      if (error.name !== 'TypeError') throw error;
      retry = part.at > from ? 0 : retry + 1; // As long as something comes, there is hope.
      if (retry > RETRIES || navigator.onLine === false) throw networkError(file.url, error);
      await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** retry));
      signal.throwIfAborted();
      if (file.bytes === null) part.restart();
    }
  }
}

/** Fetches one portion; true when the file is whole. */
async function portion(file, part, signal, report) {
  const from = part.at;
  // Small files are asked for whole: servers may compress those, which ranges forbid.
  const ranged = file.bytes !== null && (from > 0 || file.bytes > PORTION);
  const headers = ranged ? { Range: `bytes=${from}-${Math.min(from + PORTION, file.bytes) - 1}` } : {};
  const response = await fetch(file.url, { headers, signal, cache: 'no-store' });
  if (response.status === 416 && from > 0) {
    part.restart();
    return false;
  }
  if (!response.ok) {
    throw fail('ModelError', `${file.url} could not be fetched: the server answered ${response.status} ${response.statusText}.`.replace(' .', '.'));
  }
  const range = /^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '');
  const partial = response.status === 206;
  // The whole file where a range was asked for: start over with what comes.
  if (from > 0 && !partial) part.restart();
  if (partial && range && Number(range[1]) !== part.at) {
    throw fail('ModelError', `${file.url} could not be fetched: the server answered with another range than the one asked for.`);
  }
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (file.bytes !== null && part.at + value.length > file.bytes) {
        part.restart();
        throw fail('ModelError', `${file.url} is longer than its manifest says (${file.bytes} bytes). It was not kept.`);
      }
      part.write(value);
      report(part.at);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (file.bytes === null) return true;
  // A connection that breaks fails above; this is the end of what the server has.
  if (part.at < file.bytes && (!partial || part.at === from)) {
    part.restart();
    throw fail('ModelError', `${file.url} is shorter than its manifest says (${file.bytes} bytes). It was not kept.`);
  }
  return part.at === file.bytes;
}
