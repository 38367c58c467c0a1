// Keeps the page, so that it opens without a connection: the network first, what is kept where that fails. Weights are not its
// business; the package keeps those itself.

const CACHE = 'pulid-wgpu-page';
const SHELL = [
  './', 'style.css', 'app.js', 'faces.js', 'kept.js', 'progress.js', 'settings.js', 'trouble.js',
  ...['index.js', 'worker.js', 'store.js', 'photos.js', 'memory.js', 'manifest.js', 'errors.js', 'pulid_wasm.js', 'pulid_wasm_bg.wasm', 'settings.js'].map((f) => `pulid/${f}`),
  ...['ada', 'ben', 'cleo', 'dan', 'eva', 'finn', 'gia', 'hugo', 'jon', 'lars', 'nils', 'omar'].map((f) => `faces/${f}.jpg`),
];

self.addEventListener('install', (event) => {
  event.waitUntil((async () => {
    const cache = await caches.open(CACHE);
    // One by one: a file that is missing must not keep the others away.
    await Promise.allSettled(SHELL.map((file) => cache.add(file)));
    await self.skipWaiting();
  })());
});

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const page = new URL('./', self.location).href;
  // What scripts fetch has no destination: of that the engine and the sample photos are the page's, anything else may be huge.
  const ours = request.destination || /\.wasm$|\/faces\/\w+\.jpg$/.test(url.pathname);
  if (request.method !== 'GET' || !url.href.startsWith(page) || !ours) return;
  event.respondWith((async () => {
    const cache = await caches.open(CACHE);
    try {
      const response = await fetch(request);
      if (response.status === 200) await cache.put(request, response.clone());
      return response;
    } catch (error) {
      const kept = await cache.match(request, { ignoreSearch: true });
      if (kept) return kept;
      throw error;
    }
  })());
});
