"""What `measure` found, as Markdown."""


def tables(report, short=False):
    """What was found, as Markdown; in short for the end of a log."""
    lines = []
    machine_, peak = report.get("machine", {}), report.get("peaks", {})
    lines.append(f"{machine_.get('nvidia_smi', '?')}; {', '.join(f'{k} {v:.0f}' if isinstance(v, float) else f'{k} {v}' for k, v in peak.items())}\n")
    found = report.get("kernels", {})
    if found:
        lines += short_kernels(found) if short else long_kernels(found)
        lines.append("")
    found = report.get("networks", {})
    if found:
        lines += ["| network | ms a call | TFLOP/s | first call ms | load s | ratio to PyTorch |", "|---|---:|---:|---:|---:|---:|"]
        for name, figures in found.items():
            if not isinstance(figures, dict) or name == "choices":
                continue
            base = found.get("decoder pytorch" if name.startswith("decoder") else "unet pytorch", {}).get("milliseconds")
            if "call_milliseconds" in figures:
                ms = figures["call_milliseconds"]
                lines.append(f"| {name} | {ms:.1f} | {figures['call_gflops'] / 1e3:.2f} | {figures['first_call_milliseconds']:.0f} | {figures['load_seconds']:.1f} | {base / ms if base else 0:.3f} |")
            else:
                said = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
                lines.append(f"| {name} | {said} | | | | |")
        for name, figures in found.items():
            if isinstance(figures, dict) and figures.get("operators"):
                top = [f"{o['operator']} {o['variant']} x{o['count']} {o['milliseconds']:.2f} ms {o['gflops'] / 1e3:.1f} TF" for o in figures["operators"][:9]]
                lines.append(f"\n{name}: " + "; ".join(top))
        lines.append("")
    if report.get("images"):
        lines.append("images against lavapipe, of 255: " + "; ".join(f"{k} {v.get('error') or '%d largest, %.3f mean' % (v['largest'], v['mean'])}" for k, v in report["images"].items()))
    if report.get("conformance"):
        found = report["conformance"]
        lines.append(f"conformance: {found['summary']}, not run: {len(found['not_run'])} groups; failures: " + (", ".join(str(f.get("id")) for f in found["failures"][:15]) or "none"))
    lines.append("seconds: " + ", ".join(f"{k} {v}" for k, v in report["seconds"].items()))
    if report.get("errors"):
        lines.append(f"errors: {report['errors']}")
    return "\n".join(lines) + "\n"


def fastest(found, key):
    """Our variants of a case in a storage type, fastest first."""
    return sorted((r for r in found.get("ours", []) if f"{r['kernel']} {r['dtype']}" == key), key=lambda r: r["milliseconds"])


def long_kernels(found):
    """A row for each case and storage type."""
    lines = ["| kernel | dtype | PyTorch us | TFLOP/s | GB/s | ours: variant us TFLOP/s GB/s ratio |", "|---|---|---:|---:|---:|---|"]
    keys = list(found.get("pytorch", {})) + [f"{r['kernel']} {r['dtype']}" for r in found.get("ours", [])]
    for key in dict.fromkeys(keys):
        case, dtype = key.rsplit(" ", 1)
        base, cells = found.get("pytorch", {}).get(key), []
        for row in fastest(found, key):
            ms = row["milliseconds"]
            ratio = f" {base['seconds'] * 1e3 / ms:.2f}" if base and ms else ""
            cells.append(f"{row['variant']}{'*' if row['chosen'] else ''} {ms * 1e3:.0f} {row['gflops'] / 1e3:.1f} {row['gbytes']:.0f}{ratio}")
        their = f"{base['seconds'] * 1e6:.0f} | {base['flops'] / base['seconds'] / 1e12:.1f} | {base['bytes'] / base['seconds'] / 1e9:.0f}" if base else "- | - | -"
        lines.append(f"| {case} | {dtype} | {their} | {'; '.join(cells) or '-'} |")
    return lines


def short_kernels(found):
    """A row for each case: half precision in full, of single precision the fastest."""
    lines = ["us (TFLOP/s); ratio is PyTorch's time over ours; * what networks run", "", "| kernel | torch f16 | ours f16 | ratio | torch f32 | ours f32 |", "|---|---|---|---:|---|---|"]
    keys = list(found.get("pytorch", {})) + [f"{r['kernel']} {r['dtype']}" for r in found.get("ours", [])]
    for case in dict.fromkeys(key.rsplit(" ", 1)[0] for key in keys):
        cells, ratio = [], ""
        for dtype in ("f16", "f32"):
            base, rows = found.get("pytorch", {}).get(f"{case} {dtype}"), fastest(found, f"{case} {dtype}")
            cells.append(f"{base['seconds'] * 1e6:.0f} ({base['flops'] / base['seconds'] / 1e12:.0f})" if base else "-")
            shown = rows if dtype == "f16" else rows[:1]
            cells.append(", ".join(f"{r['variant']}{'*' if r['chosen'] else ''} {r['milliseconds'] * 1e3:.0f} ({r['gflops'] / 1e3:.1f})" for r in shown) or "-")
            if dtype == "f16" and base and rows:
                ratio = f"{base['seconds'] * 1e3 / rows[0]['milliseconds']:.3f}"
        name = case.replace("kernel=", "").replace("matmul/", "mm ").replace("conv2d/x=", "conv ").replace("attention/", "attn ")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {ratio} | {cells[2]} | {cells[3]} |")
    return lines
