//! Every operator's cases, every kernel variant and storage mode, on the device `PULID_TEST_DEVICE` (default: the best).
//! `cargo test -p pulid-conformance --test operators -- group_norm` runs those whose id contains `group_norm`.

use libtest_mimic::{Arguments, Failed, Trial};
use pulid_conformance::checks;
use pulid_engine::{Device, DeviceOptions};

fn main() {
    let mut arguments = Arguments::from_args();
    // One device; its work does not gain from threads, and software devices use all cores by themselves.
    arguments.test_threads = Some(1);
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let device = match pollster::block_on(Device::open(&selector, DeviceOptions::default())) {
        Ok(device) => device,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    };
    let s = device.summary();
    println!("device: {} ({}, {})", s.name, s.driver, s.backend);
    let checks = checks(device.capabilities()).expect("every case lowers");
    let trials = checks
        .into_iter()
        .map(|check| {
            let (device, id) = (device.clone(), check.id.clone());
            let ignored = check.skipped.is_some();
            let test = move || match pollster::block_on(check.run(&device)) {
                Ok(comparison) if comparison.passed() => Ok(()),
                Ok(comparison) => Err(Failed::from(comparison)),
                Err(e) => Err(Failed::from(e)),
            };
            Trial::test(id, test).with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
