//! Where the time of networks goes, by operator and kernel variant.

use pulid_engine::StepProfile;
use std::collections::BTreeMap;

/// The steps of a network that share operator and variant.
#[derive(Default, serde::Serialize)]
pub struct Share {
    operator: String,
    variant: &'static str,
    count: usize,
    milliseconds: f64,
    gflops: f64,
}

/// What steps share, the longest first.
pub fn shares<'a>(steps: impl IntoIterator<Item = &'a StepProfile>) -> Vec<Share> {
    let mut shares: BTreeMap<(&str, &str), (Share, u64)> = BTreeMap::new();
    for step in steps {
        let operator = step.operator.split('(').next().unwrap_or_default();
        let (share, flops) = shares.entry((operator, step.variant)).or_default();
        share.operator = operator.to_owned();
        share.variant = step.variant;
        share.count += 1;
        share.milliseconds += step.seconds * 1e3;
        *flops += step.cost.flops;
        share.gflops = *flops as f64 / share.milliseconds / 1e6;
    }
    let mut shares: Vec<_> = shares.into_values().map(|(share, _)| share).collect();
    shares.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    shares
}

/// Prints them as a table.
pub fn say_shares(shares: &[Share]) {
    say!("{:>10} {:>9} {:>6}  operator", "ms", "GFLOP/s", "count");
    for s in shares {
        say!("{:>10.3} {:>9.2} {:>6}  {} {}", s.milliseconds, s.gflops, s.count, s.operator, s.variant);
    }
}

/// Of several networks, each with its name and milliseconds, the longest first.
pub fn by_network(steps: &[(String, StepProfile)]) -> Vec<(String, f64, Vec<Share>)> {
    let mut networks: BTreeMap<&str, Vec<&StepProfile>> = BTreeMap::new();
    for (network, step) in steps {
        networks.entry(network).or_default().push(step);
    }
    let sum = |steps: &[&StepProfile]| steps.iter().map(|step| step.seconds * 1e3).sum::<f64>();
    let mut all: Vec<_> =
        networks.into_iter().map(|(name, steps)| (name.to_owned(), sum(&steps), shares(steps))).collect();
    all.sort_by(|(_, a, _), (_, b, _)| b.total_cmp(a));
    all
}
