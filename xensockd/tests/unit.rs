//! The unit for systemd.

use std::path::Path;
use std::process::Command;

/// The exposure from which on systemd calls a unit medium or worse is 5.
const MOST: f64 = 2.0;

#[test]
fn the_unit_leaves_the_daemon_few_rights() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/xensockd.service");
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--offline=true", "--no-pager"]).arg(unit);
    let Ok(output) = analyze.env("LC_ALL", "C").output() else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let said = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    let level = said.split("Overall exposure level for xensockd.service: ").nth(1);
    let level = level.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    assert!(level.expect("a number") < MOST, "{level:?}");
}
