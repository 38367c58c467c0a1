//! What the compilers of GPUs that are not here make of the kernels, by the drivers of a pinned Mesa: `crates/gpustats`.

use crate::mesa::{Mesa, VERSION};
use crate::{Outcome, root, run};
use std::process::Command;

/// The command by itself, with what follows it on the command line.
pub fn command(arguments: &[String]) -> Outcome {
    let mesa = Mesa::fetched()?;
    run("cargo", &["build", "--quiet", "--package", "pulid-gpustats"])?;
    start(&mesa, arguments)
}

/// The part of `test`: compares the table, or says why it cannot. What tests build is there.
pub fn check() -> Outcome {
    match Mesa::fetched() {
        Ok(mesa) => start(&mesa, &[]),
        Err(why) => {
            println!("what GPUs' compilers make of the kernels is not checked: {why}");
            Ok(())
        }
    }
}

fn start(mesa: &Mesa, arguments: &[String]) -> Outcome {
    println!("$ pulid-gpustats {}   (compilers of Mesa {VERSION})", arguments.join(" "));
    let mut command = Command::new(root().join("target/debug/pulid-gpustats"));
    let status = command.arg(mesa.libraries()).arg(VERSION).args(arguments).status();
    match status.map_err(|e| format!("pulid-gpustats cannot be started: {e}"))? {
        status if status.success() => Ok(()),
        _ => Err("see above".into()),
    }
}
