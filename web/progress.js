// The status line: stage, how far, how long still, and the image forming.

const element = (id) => document.getElementById(id);

function time(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s left`;
  return `about ${Math.round(seconds / 60)} min left`;
}

/** Bytes in words. */
export function amount(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Sets the state: idle, loading, working, done, cancelled or error, and what is said of it. */
export function state(name, text, detail = '') {
  element('status').dataset.state = name;
  element('stage').textContent = text;
  element('detail').textContent = detail;
  const busy = name === 'loading' || name === 'working';
  element('progress').hidden = !busy;
  element('progress').removeAttribute('value');
  element('frame').classList.toggle('busy', busy);
  if (!busy) element('preview').hidden = true;
}

/** A listener for the events of one call. `prefix` says which of several images is being made. */
export function listener(prefix = '') {
  let began = 0;
  let first = 0;
  const bar = element('progress');
  const detail = element('detail');
  return (event) => {
    switch (event.type) {
      case 'stage':
        // Only stages are announced to screen readers; numbers change too often for that.
        element('stage').textContent = prefix ? `${prefix}: ${event.stage}` : event.stage[0].toUpperCase() + event.stage.slice(1);
        detail.textContent = '';
        bar.removeAttribute('value');
        began = performance.now();
        first = 0;
        break;
      case 'progress': {
        if (!event.total) break;
        bar.value = event.done / event.total;
        first ||= event.done;
        const fetched = event.stage === 'fetching weights';
        const seconds = (performance.now() - began) / 1000;
        const left = (event.total - event.done) * seconds / (event.done - first);
        const parts = fetched ? [`${amount(event.done)} of ${amount(event.total)}`] : [`${Math.round(100 * event.done / event.total)} %`];
        if (seconds > 2 && Number.isFinite(left) && event.done < event.total) parts.push(time(left));
        detail.textContent = parts.join(', ');
        break;
      }
      case 'step': {
        bar.value = event.step / event.steps;
        const left = (performance.now() - began) / 1000 / event.step * (event.steps - event.step);
        detail.textContent = `Step ${event.step} of ${event.steps}${event.step < event.steps ? `, ${time(left)}` : ''}`;
        break;
      }
      case 'preview': {
        const canvas = element('preview');
        if (canvas.width !== event.width || canvas.height !== event.height) {
          Object.assign(canvas, { width: event.width, height: event.height });
        }
        canvas.getContext('2d').putImageData(new ImageData(new Uint8ClampedArray(event.rgba.buffer), event.width, event.height), 0, 0);
        canvas.hidden = false;
        break;
      }
      case 'note':
        detail.textContent = event.text;
        break;
      default:
    }
  };
}
