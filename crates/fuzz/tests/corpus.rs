//! The corpus of the fuzz targets, and changed copies of it, within each target's allowance of memory.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use pulid_fuzz::{TARGETS, Target, lift};
use std::path::Path;

/// Every file of a target.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// One change of a file, as fuzzers make them.
#[derive(Clone, Debug)]
enum Change {
    Byte(Index, u8),
    Number(Index, u64, usize),
    Cut(Index),
    Remove(Index, Index),
    Repeat(Index, Index, usize),
}

impl Change {
    fn any() -> impl Strategy<Value = Change> {
        let numbers = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
        prop_oneof![
            4 => (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Change::Byte(at, to)),
            3 => (any::<Index>(), proptest::sample::select(numbers.to_vec()), 1usize..=8)
                .prop_map(|(at, number, size)| Change::Number(at, number, size)),
            1 => any::<Index>().prop_map(Change::Cut),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::Remove(a, b)),
            1 => (any::<Index>(), any::<Index>(), 1usize..40).prop_map(|(a, b, n)| Change::Repeat(a, b, n)),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let place = |index: &Index| index.index(bytes.len());
        let span = |a: &Index, b: &Index| place(a).min(place(b))..place(a).max(place(b));
        match self {
            Change::Byte(at, to) => {
                let at = place(at);
                bytes[at] = *to;
            }
            Change::Number(at, number, size) => {
                let at = place(at);
                let size = (*size).min(bytes.len() - at);
                bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
            }
            Change::Cut(at) => bytes.truncate(place(at)),
            Change::Remove(a, b) => drop(bytes.drain(span(a, b))),
            Change::Repeat(a, b, times) => {
                let span = span(a, b);
                let part = bytes[span.start..span.end.min(span.start + 64)].repeat(*times);
                bytes.splice(span.end..span.end, part);
            }
        }
    }
}

/// What tells this program, started once more, to exceed an allowance.
const EXCEED: &str = "PULID_FUZZ_EXCEED";

/// One test for all: the allowance is the process's, so targets take turns.
#[test]
fn nothing_in_the_corpus_or_near_it_breaks_a_reader_or_its_allowance() {
    if std::env::var_os(EXCEED).is_some() {
        let image = Target::named("image").unwrap();
        let mean = Target { base: 1000, factor: 1, ..image };
        return corpus(&image).iter().for_each(|bytes| mean.feed(bytes));
    }
    // The allowance is one: with less, the same files end the process.
    let again = std::env::current_exe().unwrap();
    let status = std::process::Command::new(again).env(EXCEED, "1").stderr(std::process::Stdio::null()).status();
    assert!(status.unwrap().code().is_none_or(|code| code == 134), "an allowance does not hold");

    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        lift();
        hook(panic);
    }));
    for target in TARGETS {
        let corpus = corpus(&target);
        assert!(corpus.len() >= 8, "{} has a corpus of {}", target.name, corpus.len());
        for bytes in &corpus {
            target.feed(bytes);
        }
        let changed = (any::<Index>(), proptest::collection::vec(Change::any(), 1..5));
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(20_000) });
        let outcome = runner.run(&changed, |(file, changes)| {
            let mut bytes = file.get(&corpus).clone();
            changes.iter().for_each(|change| change.apply(&mut bytes));
            target.feed(&bytes);
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{}: {error}", target.name));
    }
}
