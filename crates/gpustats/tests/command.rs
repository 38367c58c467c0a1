//! The command line without any of Mesa's drivers.

use std::process::Command;

fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pulid-gpustats")).args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_be_done_is_said() {
    for (arguments, part) in [
        (&[][..], "the folder of Mesa's libraries"),
        (&["nowhere", "1", "--what"], "unknown option `--what`"),
        (&["nowhere", "1", "--dump"], "after --dump"),
        (&["nowhere", "1", "--gpu", "voodoo"], "no GPU `voodoo`; there are navi21, "),
        (&["nowhere", "1", "--gpu", "m1", "--bless"], "renews the whole table"),
        (&["nowhere", "1", "--gpu", "m1"], "loader cannot be started"),
        (&["nowhere", "1", "--compile", "m1"], "nowhere/libvulkan_asahi.so"),
    ] {
        let told = refused(arguments);
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
}
