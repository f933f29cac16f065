//! The program's command line.

use std::path::Path;
use std::process::{Command, Output};

fn xensockd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xensockd")).args(arguments).output().unwrap()
}

#[test]
fn version_and_help_are_printed() {
    let version = String::from_utf8(xensockd(&["--version"]).stdout).unwrap();
    assert_eq!(version, format!("xensockd {}\n", env!("CARGO_PKG_VERSION")));
    let help = String::from_utf8(xensockd(&["--help"]).stdout).unwrap();
    for option in ["--log-level", "--max-page-order", "--max-sockets", "--reuse-port"] {
        assert!(help.contains(option), "{help}");
    }
}

#[test]
fn without_xen_one_line_names_the_missing_device_and_the_remedy() {
    if Path::new("/dev/xen/gntdev").exists() {
        eprintln!("skipped: this machine runs under Xen");
        return;
    }
    let output = xensockd(&[]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("/dev/xen/gntdev") && message.contains("xen-gntdev"), "{message}");
}

#[test]
fn an_invalid_option_is_refused() {
    let output = xensockd(&["--max-page-order", "12"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("1..=9"));
}
