#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pulid_fuzz::Target::named("gguf").expect("a target").feed(bytes));
