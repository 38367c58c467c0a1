//! What devices said of each operator, as one table: `docs/conformance.md`.

use crate::{Outcome, Summary, place};
use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// A report cut down to what the table says: small enough to keep for every device that somebody ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Program and version.
    pub program: String,
    /// Day of the run, `2026-01-31`.
    pub date: String,
    /// The device.
    pub device: Adapter,
    /// Counts by operator and storage, `matmul/matmul` and `f16`.
    pub operators: BTreeMap<String, BTreeMap<String, Count>>,
    /// Why checks were skipped, and how many.
    pub skipped: BTreeMap<String, usize>,
    /// Checks that failed, and what was found.
    pub failed: BTreeMap<String, String>,
    /// Checks that failed as is known, and why.
    pub expected: BTreeMap<String, String>,
}

/// A device as a report names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Adapter {
    /// Name given by the driver.
    pub name: String,
    /// Driver and its version.
    #[serde(default)]
    pub driver: String,
    /// What runs the shaders: `vulkan`, `metal`, `dx12`, `gl` of wgpu's, or a WebGPU of its own.
    pub backend: String,
}

/// How the checks of an operator under one storage mode ended.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    /// By outcome.
    #[serde(flatten)]
    pub outcomes: Summary,
    /// Largest error of those that passed, in units of the tolerance.
    pub worst: f64,
}

/// What of a report is read.
#[derive(Deserialize)]
struct Full {
    program: String,
    date: String,
    device: Adapter,
    checks: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    outcome: Outcome,
    worst: Option<f64>,
    #[serde(default)]
    detail: Option<String>,
}

impl Column {
    /// From the text of a report, `pulid conformance --report FILE.json` or `web/conformance.mjs`. `name` is for the error.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_report(text: &str, name: &str) -> Result<Column> {
        let report: Full =
            serde_json::from_str(text).map_err(|e| Error::invalid(name, format!("is no report: {e}")))?;
        let (operators, skipped) = Default::default();
        let (failed, expected) = Default::default();
        let Full { program, date, device, checks } = report;
        let mut column = Column { program, date, device, operators, skipped, failed, expected };
        for line in checks {
            let (operator, storage) = place(&line.id);
            let by_storage = column.operators.entry(operator.to_owned()).or_default();
            let count = by_storage.entry(storage.to_owned()).or_default();
            count.outcomes.add(line.outcome);
            let detail = line.detail.unwrap_or_default();
            match line.outcome {
                // Thousandths are enough to see a kernel drift.
                Outcome::Pass => count.worst = count.worst.max((line.worst.unwrap_or_default() * 1e3).ceil() / 1e3),
                Outcome::Skip => *column.skipped.entry(detail).or_default() += 1,
                Outcome::Fail => drop(column.failed.insert(line.id, detail)),
                Outcome::ExpectedFail => drop(column.expected.insert(line.id, detail)),
            }
        }
        Ok(column)
    }

    /// From the text of a column's file.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str, name: &str) -> Result<Column> {
        serde_json::from_str(text).map_err(|e| Error::invalid(name, format!("is no summary of a report: {e}")))
    }

    /// The text of a column's file.
    ///
    /// # Errors
    /// Never, but for a fault of ours.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::invalid("summary", e.to_string()))?;
        Ok(text + "\n")
    }

    fn total(&self) -> Summary {
        let counts = self.operators.values().flat_map(BTreeMap::values);
        counts.fold(Summary::default(), |all, count| all.and(count.outcomes))
    }

    /// `32`, `30 (2 skipped)`, `**1 fail**, 31`; with the largest error.
    fn cell(&self, operator: &str) -> String {
        let Some(by_storage) = self.operators.get(operator) else { return String::new() };
        let s = by_storage.values().fold(Summary::default(), |all, count| all.and(count.outcomes));
        let worst = by_storage.values().map(|count| count.worst).fold(0.0, f64::max);
        let mut parts = Vec::new();
        if s.fail > 0 {
            parts.push(format!("**{} fail**", s.fail));
        }
        if s.pass > 0 {
            parts.push(if worst > 0.0 { format!("{} ≤ {worst:.2}", s.pass) } else { s.pass.to_string() });
        }
        let aside: Vec<String> = [(s.expected_fail, "fail as expected"), (s.skip, "skipped")]
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, word)| format!("{n} {word}"))
            .collect();
        let aside = aside.join(", ");
        match (parts.is_empty(), aside.is_empty()) {
            (_, true) => parts.join(", "),
            (true, false) => aside,
            (false, false) => format!("{} ({aside})", parts.join(", ")),
        }
    }
}

/// The table in Markdown, and what lies behind it. `operators` gives the order of the rows; others follow.
pub fn matrix(columns: &BTreeMap<String, Column>, operators: &[String]) -> String {
    let mut text = String::from(
        "| column | device | driver | runs on | program | date | pass | fail | skipped | fail as expected |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    // Writing to a string does not fail.
    for (name, c) in columns {
        let (s, d) = (c.total(), &c.device);
        let device = format!("{} | {} | {} | {} | {}", d.name, d.driver, d.backend, c.program, c.date);
        let _ = writeln!(text, "| {name} | {device} | {} | {} | {} | {} |", s.pass, s.fail, s.skip, s.expected_fail);
    }
    let names: Vec<&str> = columns.keys().map(String::as_str).collect();
    let _ = writeln!(text, "\n| operator | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    let known: BTreeSet<&str> = operators.iter().map(String::as_str).collect();
    let others: BTreeSet<&str> = columns.values().flat_map(|c| c.operators.keys()).map(String::as_str).collect();
    for operator in operators.iter().map(String::as_str).chain(others.into_iter().filter(|o| !known.contains(o))) {
        let cells: Vec<String> = columns.values().map(|c| c.cell(operator)).collect();
        let _ = writeln!(text, "| `{operator}` | {} |", cells.join(" | "));
    }
    let _ = writeln!(text, "\n## Skipped\n");
    list(&mut text, columns, |c| c.skipped.iter().map(|(reason, n)| format!("{n} checks: {reason}")).collect());
    let _ = writeln!(text, "\n## Failures\n");
    list(&mut text, columns, |c| c.failed.iter().map(|(id, detail)| format!("`{id}`: {detail}")).collect());
    let _ = writeln!(text, "\n## Expected failures\n");
    list(&mut text, columns, |c| c.expected.iter().map(|(id, detail)| format!("`{id}`: {detail}")).collect());
    text
}

/// What columns say, the same of several once.
fn list(text: &mut String, columns: &BTreeMap<String, Column>, items: impl Fn(&Column) -> Vec<String>) {
    let mut said: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, column) in columns {
        for item in items(column) {
            said.entry(item).or_default().push(name);
        }
    }
    for (item, names) in &said {
        let _ = writeln!(text, "- {item} ({})", names.join(", "));
    }
    if said.is_empty() {
        text.push_str("None.\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"program": "pulid-wgpu 1", "date": "2026-01-31", "summary": {},
        "device": {"name": "Some GPU", "driver": "mesa 25", "backend": "vulkan", "kind": "Discrete"},
        "checks": [
            {"id": "b/x:dtype=f32;kernel=k;1", "outcome": "pass", "worst": 0.25, "milliseconds": 1.0},
            {"id": "b/x:dtype=f16;kernel=k;1", "outcome": "skip", "worst": null, "detail": "no f16"},
            {"id": "b/x:dtype=f32;kernel=k;2", "outcome": "fail", "worst": null, "detail": "lost"},
            {"id": "a/y:dtype=f32;kernel=k;1", "outcome": "expected_fail", "worst": 3.0, "detail": "issue 7: 3"},
            {"id": "onnx/node:test_abs", "outcome": "pass", "worst": null}]}"#;

    #[test]
    fn a_report_becomes_a_column_and_cells() {
        let column = Column::of_report(REPORT, "report.json").unwrap();
        let again = Column::parse(&column.json().unwrap(), "column.json").unwrap();
        assert_eq!(again.json().unwrap(), column.json().unwrap());
        let mut columns = BTreeMap::from([("some".to_owned(), again)]);
        let text = matrix(&columns, &["b/x".into(), "a/y".into(), "c/z".into()]);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
        let want = [
            "| `b/x` | **1 fail**, 1 ≤ 0.25 (1 skipped) |",
            "| `a/y` | 1 fail as expected |",
            "| `c/z` |  |",
            "| `onnx/node` | 1 |",
        ];
        assert_eq!(rows, want);
        assert!(
            text.contains("| some | Some GPU | mesa 25 | vulkan | pulid-wgpu 1 | 2026-01-31 | 2 | 1 | 1 | 1 |"),
            "{text}"
        );
        columns.insert("twin".to_owned(), Column { skipped: BTreeMap::new(), ..column });
        let text = matrix(&columns, &[]);
        for line in
            ["- 1 checks: no f16 (some)", "- `b/x:dtype=f32;kernel=k;2`: lost (some, twin)", "issue 7: 3 (some, twin)"]
        {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for text in ["{}", "[]", &REPORT.replace("\"date\": \"2026-01-31\",", "")] {
            assert!(Column::of_report(text, "x.json").unwrap_err().to_string().contains("x.json"));
        }
        assert!(Column::parse(REPORT, "x.json").is_err());
    }
}
