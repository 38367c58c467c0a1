//! The table in `tests/snapshots/gpu_stats.txt`: a kernel's name, and below it a line for each GPU.

use crate::{Figures, GPUS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One kernel on one GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the kernel.
    pub kernel: String,
    /// Name of the GPU.
    pub gpu: String,
    /// Whether products are of cooperative matrices.
    pub cooperative: bool,
    /// Invocations of a subgroup that it was lowered for, least and most.
    pub expected_lanes: [u32; 2],
    /// What the compiler says.
    pub figures: Figures,
}

/// Titles of the columns, and how wide they are.
const COLUMNS: [(&str, usize); 11] = [
    ("lanes", 5),
    ("registers", 9),
    ("spills", 6),
    ("scratch", 7),
    ("workgroup", 9),
    ("resident", 8),
    ("code", 7),
    ("instructions", 12),
    ("cycles", 8),
    ("matrix", 6),
    ("per product", 11),
];

/// Lines that begin so are no rows.
const COMMENT: char = '#';
/// Before a GPU's name.
const INDENT: &str = "  ";

/// The table as text, sorted by kernel and then as [`GPUS`] are.
pub fn render(rows: &[Row], version: &str) -> String {
    let mut text = format!(
        "{COMMENT} What Mesa {version} makes of the kernels. `cargo xtask gpu-stats --bless` writes this, docs/gpu-stats.md explains it.\n"
    );
    for gpu in &GPUS {
        let _ = writeln!(text, "{COMMENT} {:10} {}", gpu.name, gpu.known_as);
    }
    let titles: String = COLUMNS.iter().map(|(title, width)| format!(" {title:>width$}")).collect();
    let _ = writeln!(text, "{COMMENT}{INDENT}{:9}{titles}", "");
    let mut kernels: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        kernels.entry(&row.kernel).or_default().push(row);
    }
    let place = |row: &Row| GPUS.iter().position(|gpu| gpu.name == row.gpu);
    for (kernel, mut rows) in kernels {
        rows.sort_by_key(|row| place(row));
        let _ = writeln!(text, "{kernel}");
        for row in rows {
            let _ = writeln!(text, "{INDENT}{:10}{}", row.gpu, cells(&row.figures));
        }
    }
    text
}

fn cells(f: &Figures) -> String {
    let told = |value: Option<u64>| value.map_or("-".to_owned(), |v| v.to_string());
    let hundredths = |value: Option<u64>| value.map_or("-".to_owned(), |v| format!("{}.{:02}", v / 100, v % 100));
    let values = [
        f.lanes.to_string(),
        told(f.registers),
        f.spills.to_string(),
        f.scratch.to_string(),
        f.workgroup.to_string(),
        told(f.resident),
        told(f.code),
        told(f.instructions),
        told(f.cycles),
        f.matrix.to_string(),
        hundredths(f.per_product),
    ];
    values.iter().zip(COLUMNS).map(|(value, (_, width))| format!(" {value:>width$}")).collect()
}

/// What must not be, whatever the table says: a kernel that spills, or that is cooperative and multiplies no matrices on a GPU that can.
pub fn problems(rows: &[Row]) -> Vec<String> {
    let mut found = Vec::new();
    for Row { kernel, gpu, cooperative, expected_lanes, figures } in rows {
        if figures.spills > 0 {
            found.push(format!("{kernel} on {gpu} spills registers ({})", figures.spills));
        }
        if figures.scratch > 0 {
            found.push(format!("{kernel} on {gpu} keeps {} bytes of each invocation in memory", figures.scratch));
        }
        let able = GPUS.iter().any(|known| known.name == gpu && known.matrices);
        if able && *cooperative && figures.matrix == 0 {
            found.push(format!("{kernel} on {gpu} holds no matrix instruction"));
        }
        let [least, most] = *expected_lanes;
        if *cooperative && !(least..=most).contains(&figures.lanes) {
            let lanes = figures.lanes;
            let made = if least == most { least.to_string() } else { format!("{least} to {most}") };
            found.push(format!("{kernel} on {gpu} is made for subgroups of {made} and compiled for {lanes}"));
        }
    }
    for gpu in GPUS.iter().filter(|gpu| gpu.matrices) {
        if !rows.iter().any(|row| row.gpu == gpu.name && row.cooperative) {
            found.push(format!("{} has no cooperative kernel", gpu.name));
        }
    }
    found
}

/// The lines of a table by kernel and GPU.
fn lines(text: &str) -> BTreeMap<(&str, &str), &str> {
    let (mut kernel, mut lines) = ("", BTreeMap::new());
    for line in text.lines().filter(|line| !line.starts_with(COMMENT)) {
        match line.strip_prefix(INDENT).and_then(|row| row.split_once(' ')) {
            Some((gpu, cells)) => drop(lines.insert((kernel, gpu), cells.trim())),
            None => kernel = line,
        }
    }
    lines
}

/// How a new table differs from an old one, a line each.
pub fn differences(old: &str, new: &str) -> Vec<String> {
    if old == new {
        return Vec::new();
    }
    let (before, after) = (lines(old), lines(new));
    let spaced = |cells: &str| cells.split_whitespace().collect::<Vec<_>>().join(" ");
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|(k, g)| format!("gone: {k} on {g}"));
    let others = after.iter().filter_map(|((kernel, gpu), now)| match before.get(&(*kernel, *gpu)) {
        None => Some(format!("new: {kernel} on {gpu}")),
        Some(was) if was != now => Some(format!("{kernel} on {gpu}: was {}, is {}", spaced(was), spaced(now))),
        Some(_) => None,
    });
    let found: Vec<_> = gone.chain(others).collect();
    if found.is_empty() { vec!["the text around the rows".into()] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, gpu: &str) -> Row {
        let figures = Figures { lanes: 64, registers: Some(32), matrix: 4, ..Figures::default() };
        let cooperative = kernel.contains("coop");
        Row { kernel: kernel.into(), gpu: gpu.into(), cooperative, expected_lanes: [32, 64], figures }
    }

    fn whole() -> Vec<Row> {
        ["navi31", "gfx1201", "ampere"].map(|gpu| row("a+coop16 LANES=64", gpu)).into()
    }

    #[test]
    fn kernels_that_spill_or_miss_their_matrices_are_problems() {
        assert_eq!(problems(&whole()), Vec::<String>::new());
        let with = |change: fn(&mut Row)| {
            let mut rows = whole();
            change(&mut rows[1]);
            problems(&rows)
        };
        for (found, word) in [
            (with(|r| r.figures.spills = 3), "spills registers (3)"),
            (with(|r| r.figures.scratch = 16), "16 bytes"),
            (with(|r| r.figures.matrix = 0), "no matrix instruction"),
            (with(|r| r.figures.lanes = 128), "subgroups of 32 to 64 and compiled for 128"),
            (with(|r| r.expected_lanes = [32, 32]), "subgroups of 32 and compiled for 64"),
            (with(|r| r.cooperative = false), "gfx1201 has no cooperative kernel"),
        ] {
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(word) && found[0].contains("gfx1201"), "{found:?}");
        }
        let mut plain = whole();
        plain.push(Row { figures: Figures { lanes: 32, ..Figures::default() }, ..row("b", "navi31") });
        plain.push(Row { figures: Figures { lanes: 64, ..Figures::default() }, ..row("b+coop8", "turing") });
        assert_eq!(problems(&plain), Vec::<String>::new(), "plain kernels, and GPUs that are not held to it");
    }

    #[test]
    fn tables_differ_by_row() {
        let mut rows = vec![row("b X=1", "navi31"), row("a", "m1"), row("a", "navi21")];
        let old = render(&rows, "1");
        let at = |part: &str| old.find(part).unwrap_or_else(|| panic!("{part} in {old}"));
        let order = [at("\na\n"), at("\n  navi21 "), at("\n  m1 "), at("\nb X=1\n")];
        assert!(order.is_sorted(), "by kernel, then as the GPUs are listed: {old}");
        assert_eq!(differences(&old, &old), Vec::<String>::new());
        rows[0].figures.registers = Some(48);
        rows[1].gpu = "turing".into();
        let found = differences(&old, &render(&rows, "1"));
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(&found[..2], ["gone: a on m1", "new: a on turing"]);
        assert!(found[2].starts_with("b X=1 on navi31: was 64 32 ") && found[2].contains(", is 64 48 "), "{found:?}");
        assert_eq!(
            differences(&old, &render(&[row("b X=1", "navi31"), row("a", "m1"), row("a", "navi21")], "2")).len(),
            1
        );
    }
}
