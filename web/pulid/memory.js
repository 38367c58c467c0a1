// Files in memory, with as much of the origin private file system's interface as the store uses: where a browser keeps nothing for a
// page, weights live here until the worker ends.

/** Bytes of one piece of a file: no buffer is as large as a file may be. */
const PIECE = 8 << 20;

export class MemoryFolder {
  kind = 'directory';
  #children = new Map();

  constructor(name = '') {
    this.name = name;
  }

  async getDirectoryHandle(name, { create = false } = {}) {
    return this.#get(name, 'directory', create && (() => new MemoryFolder(name)));
  }

  async getFileHandle(name, { create = false } = {}) {
    return this.#get(name, 'file', create && (() => new MemoryFile(name, (file, to) => {
      this.#children.delete(file.name);
      this.#children.set(to, file);
    })));
  }

  async removeEntry(name) {
    if (!this.#children.delete(name)) throw new DOMException(`${name} is not here`, 'NotFoundError');
  }

  async* values() {
    yield* this.#children.values();
  }

  #get(name, kind, make) {
    if (!this.#children.has(name)) {
      if (!make) throw new DOMException(`${name} is not here`, 'NotFoundError');
      this.#children.set(name, make());
    }
    const found = this.#children.get(name);
    if (found.kind !== kind) throw new DOMException(`${name} is no ${kind}`, 'TypeMismatchError');
    return found;
  }
}

class MemoryFile {
  kind = 'file';
  #pieces = [];
  #size = 0;
  #moved;

  constructor(name, moved) {
    this.name = name;
    this.#moved = moved;
  }

  async move(name) {
    this.#moved(this, name);
    this.name = name;
  }

  async getFile() {
    const bytes = () => {
      const all = new Uint8Array(this.#size);
      this.#read(all, { at: 0 });
      return all;
    };
    return { size: this.#size, text: async () => new TextDecoder().decode(bytes()), arrayBuffer: async () => bytes().buffer };
  }

  /** As many at once as are wanted: one worker has it all. */
  async createSyncAccessHandle() {
    return {
      getSize: () => this.#size,
      read: (into, options) => this.#read(into, options),
      write: (from, options) => this.#write(from, options),
      truncate: (size) => this.#truncate(size),
      flush() {},
      close() {},
    };
  }

  #read(into, { at = 0 } = {}) {
    const end = Math.min(at + into.length, this.#size);
    for (let from = at; from < end;) {
      const start = from % PIECE;
      const part = this.#pieces[Math.floor(from / PIECE)].subarray(start, Math.min(PIECE, start + end - from));
      into.set(part, from - at);
      from += part.length;
    }
    return Math.max(end - at, 0);
  }

  #write(from, { at = 0 } = {}) {
    const end = at + from.length;
    while (this.#pieces.length * PIECE < end) this.#pieces.push(new Uint8Array(PIECE));
    for (let to = at; to < end;) {
      const start = to % PIECE;
      const part = from.subarray(to - at, to - at + PIECE - start);
      this.#pieces[Math.floor(to / PIECE)].set(part, start);
      to += part.length;
    }
    this.#size = Math.max(this.#size, end);
    return from.length;
  }

  #truncate(size) {
    this.#pieces.length = Math.min(this.#pieces.length, Math.ceil(size / PIECE));
    // What is written beyond the end later has zeros before it.
    if (size < this.#size && size % PIECE) this.#pieces.at(-1).fill(0, size % PIECE);
    while (this.#pieces.length * PIECE < size) this.#pieces.push(new Uint8Array(PIECE));
    this.#size = size;
  }
}
