//! HTTP requests as a user makes them: with curl.

use crate::process;
use anyhow::{Context, Result};
use std::process::Command;

/// How long a request may take, in seconds.
const SECONDS: &str = "120";

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Gets `path` from the server behind a loopback port. `arguments` are more of curl's.
pub fn get(port: u16, path: &str, arguments: &[&str]) -> Result<Answer> {
    let mut command = process::owned("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", SECONDS]);
    command.args(["--write-out", "%{http_code}"]).args(arguments);
    answer(command.arg(format!("http://127.0.0.1:{port}{path}")))
}

/// curl wrote the body and, behind it, three digits.
fn answer(command: &mut Command) -> Result<Answer> {
    let mut body = process::output(command)?.stdout;
    let digits = body.split_off(body.len().saturating_sub(3));
    let status = String::from_utf8(digits)?.parse().context("curl told no status")?;
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn the_status_is_taken_off_the_end_of_the_body() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(b"HTTP/1.0 404 No\r\nContent-Length: 4\r\n\r\n1200").unwrap();
        });
        let answer = get(port, "/", &[]).unwrap();
        assert_eq!(answer, Answer { status: 404, body: b"1200".to_vec() });
        server.join().unwrap();
    }
}
