#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pulid_fuzz::Target::named("onnx").expect("a target").feed(bytes));
