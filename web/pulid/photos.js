// Bytes of photos as the engine can read them.

/** JPEG, PNG and WebP by their first bytes, which the engine decodes by itself: the same way in every browser. */
const READ = [
  (b) => b[0] === 0xff && b[1] === 0xd8,
  (b) => b[0] === 0x89 && b[1] === 0x50 && b[2] === 0x4e && b[3] === 0x47,
  (b) => String.fromCharCode(...b.slice(0, 4)) === 'RIFF' && String.fromCharCode(...b.slice(8, 12)) === 'WEBP',
];

/** The bytes of a photo. What only the browser can show, such as HEIC in Safari and AVIF elsewhere, is turned into PNG first, whatever its name says. */
export async function bytesOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (READ.some((is) => is(bytes))) return bytes;
  try {
    const bitmap = await createImageBitmap(new Blob([bytes]));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext('2d').drawImage(bitmap, 0, 0);
    bitmap.close();
    return new Uint8Array(await (await canvas.convertToBlob({ type: 'image/png' })).arrayBuffer());
  } catch {
    return bytes; // The engine says what is wrong with it.
  }
}
