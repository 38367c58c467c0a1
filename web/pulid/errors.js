// Errors with names that callers can tell apart, and messages that say what to do.

/** An `Error` of this name. */
export function fail(name, message) {
  return Object.assign(new Error(message), { name });
}

/** Bytes for people. */
export function megabytes(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}

/** What `fetch` means when it fails without an answer: it tells a page nothing but "TypeError". */
export function networkError(url, cause) {
  const { host, origin } = new URL(url, globalThis.location?.href);
  const elsewhere = origin !== globalThis.location?.origin && globalThis.navigator?.onLine !== false;
  const error = fail('OfflineError', elsewhere
    ? `${host} could not be reached. Either there is no connection, or that server does not let other pages read its files (CORS). `
      + 'Check the address and the connection, then try again; what has arrived is kept.'
    : 'The weights are not all on this device yet, and the server could not be reached. '
      + 'Connect to the internet and try again; what has arrived is kept, and once everything is here no connection is needed.');
  error.cause = cause;
  return error;
}
