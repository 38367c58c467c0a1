//! `docs/operators.md` lists the operators as they are, `docs/conformance.md` what devices said of them. With `PULID_BLESS` set the file is written instead of compared.

use pulid_conformance::{Column, matrix, variants};
use pulid_ops::{Capabilities, DeviceKind, OperatorInfo, Storage, operators};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn row(table: &mut String, info: &OperatorInfo) {
    let cases = (info.cases)();
    let checked = cases.iter().filter(|c| !c.benchmark).count();
    let mut names = BTreeSet::new();
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        for case in &cases {
            let capabilities = Capabilities {
                shader_f16: true,
                subgroup_lanes: 8,
                cooperative_size: 16,
                max_workgroup_bytes: 48 << 10,
                ..Capabilities::baseline(kind)
            };
            for storage in [Storage::F32, Storage::F16] {
                for variant in variants(case, storage, &capabilities).expect("every case lowers") {
                    names.insert(variant.name.to_string());
                }
            }
        }
    }
    let names = names.into_iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    writeln!(table, "| `{}` | {} | {names} | {checked} | {} |", info.name, info.summary, cases.len() - checked)
        .unwrap();
}

#[test]
fn the_operator_table_is_true() {
    let mut text = String::from(
        "# Operators\n\nGenerated from the registry by `cargo xtask bless`; `cargo xtask test` holds it to the code.\n\nEvery case runs \
         on every kernel variant that the device can run, in f32, with weights packed as f16 and, where the device has \
         `shader-f16`, in f16, against a reference in plain Rust with f64 sums. Benchmark cases are real network sizes.\n\n\
         | operator | what it computes | kernel variants | cases | benchmark cases |\n|---|---|---|---|---|\n",
    );
    operators().for_each(|(_, info)| row(&mut text, info));
    hold("operators.md", &text);
}

/// Holds a document to what it should be, or writes it.
fn hold(name: &str, text: &str) {
    let path = root().join("docs").join(name);
    if std::env::var_os("PULID_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let present = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(present == text, "docs/{name} is out of date; run `cargo xtask bless`");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_matrix_shows_every_report() {
    let files = std::fs::read_dir(root().join("tests/conformance")).unwrap().map(|entry| entry.unwrap().path());
    let columns: BTreeMap<String, Column> = files
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, Column::parse(&text, &path.display().to_string()).unwrap())
        })
        .collect();
    assert!(!columns.is_empty());
    let rows: Vec<String> = operators().map(|(family, info)| format!("{}/{}", family.name, info.name)).collect();
    let present = std::fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let (before, rest) = present.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    hold("conformance.md", &format!("{before}{BEGIN}\n\n{}\n{END}{after}", matrix(&columns, &rows)));
}

/// What lies between these is generated.
const BEGIN: &str = "<!-- matrix -->";
const END: &str = "<!-- end of matrix -->";

#[test]
fn the_arithmetic_on_paper_is_that_of_the_tiles() {
    let [begin, end] = ["<!-- arithmetic -->", "<!-- end of arithmetic -->"];
    let present = std::fs::read_to_string(root().join("docs/gpu-stats.md")).unwrap();
    let (before, rest) = present.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    hold("gpu-stats.md", &format!("{before}{begin}\n\n{}\n{end}{after}", pulid_ops::arithmetic::tables()));
}
