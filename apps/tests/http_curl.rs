//! The HTTP app with curl as its client. Skipped if curl is not installed.

mod loopback;

use loopback::Server;
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

/// Runs curl with `arguments`, `@` standing for the server, and `input` on its standard input.
fn curl(server: &Server, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let base = format!("http://{}", server.address);
    let arguments = arguments.iter().map(|argument| match argument.strip_prefix('@') {
        Some(path) if path.starts_with('/') => format!("{base}{path}"),
        _ => argument.to_string(),
    });
    let child = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("curl is not installed: nothing tested");
            return None;
        }
        Err(error) => panic!("curl: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    assert!(output.status.success(), "curl: {}", output.status);
    Some(output.stdout)
}

#[test]
fn curl_gets_pages_over_one_connection() {
    let server = Server::start("");
    let arguments = [
        "--write-out",
        "%{http_code} %{num_connects}\n",
        "@/healthz",
        "@/healthz?again",
        "@/nowhere",
    ];
    let Some(output) = curl(&server, &arguments, b"") else { return };
    let text = String::from_utf8(output).unwrap();
    assert!(text.starts_with("ok\n200 1\nok\n200 0\n"), "{text}");
    assert!(text.ends_with("404 0\n"), "{text}");
}

#[test]
fn curl_gets_the_head_alone() {
    let server = Server::start("");
    let Some(output) = curl(&server, &["--head", "@/bytes/12345"], b"") else { return };
    let text = String::from_utf8(output).unwrap();
    assert!(text.contains("Content-Length: 12345\r\n") && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn curl_sends_a_big_body_by_length_and_in_chunks() {
    let server = Server::start("");
    let data: Vec<u8> = (0..5_000_000u32).map(|at| (at.wrapping_mul(40503) >> 7) as u8).collect();
    let sum: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    // curl waits for 100 Continue with bodies of this size.
    let by_length = ["--data-binary", "@-", "@/sum"];
    let in_chunks = ["--data-binary", "@-", "--header", "Transfer-Encoding: chunked", "@/sum"];
    for arguments in [by_length.as_slice(), &in_chunks] {
        let Some(output) = curl(&server, arguments, &data) else { return };
        assert_eq!(String::from_utf8(output).unwrap(), format!("{sum}\n"));
    }
}

#[test]
fn curl_gets_the_reason_why_a_body_is_refused() {
    let server = Server::start("");
    let data = vec![b'x'; 300_000];
    let arguments = ["--write-out", "%{http_code}", "--data-binary", "@-", "@/healthz"];
    let Some(output) = curl(&server, &arguments, &data) else { return };
    let text = String::from_utf8(output).unwrap();
    assert!(text.ends_with("405"), "{text}");
}
