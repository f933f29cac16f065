//! The kernel's command line, which the toolstack writes.

use apps::config::Config;

/// Parses a command line.
pub fn run(bytes: &[u8]) {
    if let Err(error) = Config::parse(bytes) {
        assert!(error.column > 0 && error.column <= bytes.len() + 1, "{error}");
        // The error is printed on the console.
        assert!(error.to_string().len() < 1000, "{error}");
    }
}

/// Valid command lines.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "",
        "app=http port=80 log=debug ring-order=4 idle-timeout=30 max-connections=9",
        "app=echo port=7 idle-timeout=0",
        "app=fetch url=http://10.0.2.2:8000/some/path?query",
    ]
    .map(|line| line.as_bytes().to_vec())
    .to_vec()
}
