//! How much code it takes to establish a connection.

use std::fs;
use std::path::Path;

/// The most lines from a disk's address to its connections.
const MOST: usize = 40;

/// What other code has for the same purpose: to find the other end, to allocate, grant and offer
/// memory and event channels, to follow the other end's state, and to begin again.
const OTHERS: [(&str, &[&str]); 5] = [
    ("XenSock's frontend", &["xensock/src/front/session.rs", "xensock/src/front/rings.rs"]),
    ("netfront", &["netfront/src/vif/session.rs", "netfront/src/vif/features.rs"]),
    (
        "what these two share",
        &[
            "xen/src/frontend/mod.rs",
            "xen/src/frontend/session.rs",
            "xen/src/frontend/pages.rs",
            "xen/src/xenbus.rs",
        ],
    ),
    (
        "what all users of IDC share, without transports",
        &["idc/src/driver.rs", "idc/src/life.rs", "idc/src/publication.rs"],
    ),
    (
        "how users of IDC meet in xenstore",
        &[
            "idc/src/xen/mod.rs",
            "idc/src/xen/nodes.rs",
            "idc/src/xen/door.rs",
            "idc/src/xen/peers.rs",
        ],
    ),
];

/// Lines of code and statements.
fn count(path: &Path) -> (usize, usize) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_code = |line: &&str| !line.is_empty() && !line.starts_with("//");
    let lines: Vec<_> = code.lines().map(str::trim).filter(is_code).collect();
    let statements = lines.iter().filter(|line| line.ends_with(';')).count();
    (lines.len(), statements)
}

#[test]
fn a_client_takes_few_lines_from_an_address_to_its_connections() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (lines, statements) = count(&root.join("disk/src/client/connect.rs"));
    println!("{lines:5} lines, {statements:4} statements: the disk's client");
    for (name, paths) in OTHERS {
        let counts = paths.iter().map(|path| count(&root.join(path)));
        let (lines, statements) = counts.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        println!("{lines:5} lines, {statements:4} statements: {name}");
        assert!(lines > MOST, "{name}: what is counted is not its code");
    }
    assert!(lines <= MOST, "{lines} lines");
}
