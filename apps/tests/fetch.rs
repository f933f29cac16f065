//! The fetch app against servers that follow a script.

mod loopback;

use apps::config::{Config, Url};
use apps::fetch::Report;
use apps::{AppError, Context, fetch};
use edge_nal::{AddrType, Dns};
use netfront::ResolveError;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Fetches from a server that sends `script`, piece by piece, then closes. Also returns the
/// request.
fn play(script: &[&[u8]]) -> (Result<Report, String>, String) {
    play_at("127.0.0.1", script)
}

/// The same, from a server with this name.
fn play_at(host: &str, script: &[&[u8]]) -> (Result<Report, String>, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url: Url =
        format!("http://{host}:{}/x?y=z", listener.local_addr().unwrap().port()).parse().unwrap();
    let script: Vec<Vec<u8>> = script.iter().map(|piece| piece.to_vec()).collect();
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        for piece in script {
            // The client may have closed the connection.
            let _ = socket.write_all(&piece);
            thread::sleep(Duration::from_millis(20));
        }
        String::from_utf8(request).unwrap()
    });
    let context = Context::new(());
    let report = loopback::block_on(|stack| async move {
        fetch::fetch(&url, &stack, &OneName, Some(Duration::from_secs(20)), &context).await
    });
    (report.map_err(|error| error.to_string()), server.join().unwrap())
}

/// Resolves one name.
struct OneName;

impl Dns for OneName {
    type Error = ResolveError;

    async fn get_host_by_name(&self, host: &str, _: AddrType) -> Result<IpAddr, ResolveError> {
        if host == "here.example" {
            Ok(Ipv4Addr::LOCALHOST.into())
        } else {
            Err(ResolveError::NotFound)
        }
    }

    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, ResolveError> {
        Err(ResolveError::Unsupported)
    }
}

#[test]
fn a_host_name_is_resolved_and_sent_to_the_server() {
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let (report, request) = play_at("here.example", &[answer]);
    assert_eq!(report.unwrap().length, 5);
    let host = request.lines().find(|line| line.starts_with("Host: here.example:"));
    assert!(host.is_some(), "{request}");
}

#[test]
fn an_unknown_name_is_reported() {
    for (command_line, expected) in [
        (
            "app=fetch url=http://there.example/x",
            "cannot resolve there.example: the name has no address",
        ),
        (
            "app=fetch url=http://nobody.knows:81/",
            "cannot resolve nobody.knows: no DNS server is known; set dns=ADDRESS",
        ),
    ] {
        let config = Config::parse(command_line.as_bytes()).unwrap();
        let context = Context::new(());
        let end = if command_line.contains("there.example") {
            loopback::block_on(async |stack| apps::run(&config, &stack, &OneName, &context).await)
        } else {
            loopback::run(&config, &context)
        };
        let error = end.unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    }
}

fn body(script: &[&[u8]]) -> Report {
    play(script).0.unwrap()
}

fn sha256(data: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(data).into()
}

#[test]
fn a_body_with_a_length_is_summed() {
    let script: [&[u8]; 2] = [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r\nhello"];
    let (report, request) = play(&script);
    let report = report.unwrap();
    assert_eq!((report.status, report.length, report.sha256), (200, 5, sha256("hello")));
    assert_eq!(
        report.to_string(),
        "200 OK, 5 bytes, sha256 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    );
    assert!(request.starts_with("GET /x?y=z HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
}

#[test]
fn a_chunked_body_is_summed_in_pieces_of_any_size() {
    let whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n";
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    for script in [vec![whole.as_slice()], whole.chunks(7).collect(), bytes] {
        let report = body(&script);
        assert_eq!((report.length, report.sha256), (11, sha256("hello world")));
    }
}

#[test]
fn a_body_without_length_ends_when_the_server_closes() {
    let big = vec![b'x'; 3_000_000];
    let report = body(&[b"HTTP/1.0 200 OK\r\n\r\n", &big, b"end"]);
    assert_eq!(report.length, 3_000_003);
    assert_eq!(report.sha256, sha256([big.as_slice(), b"end"].concat()));
}

#[test]
fn interim_responses_are_skipped() {
    let report = body(&[b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 None\r\n\r\n"]);
    assert_eq!((report.status, report.length), (204, 0));
}

#[test]
fn a_redirect_is_reported_and_not_followed() {
    let report = body(&[b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"]);
    assert_eq!((report.status, report.location.as_deref()), (302, Some("/there")));
    assert!(report.to_string().ends_with("redirects to /there (not followed)"));
}

#[test]
fn a_response_that_ends_early_is_an_error_with_its_position() {
    let head = "HTTP/1.1 200 OK\r\n";
    let many = format!("{head}{}", "N: v\r\n".repeat(101));
    let long = format!("{head}N: {}", "v".repeat(20_000));
    for (script, part) in [
        ("", "closed the connection before it had answered"),
        ("HTTP/1.1 200 OK\r\nContent", "closed the connection before it had answered"),
        ("SSH-2.0-OpenSSH\r\n", "not HTTP: its status line"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "after 5 bytes of the body"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello", "after 5 bytes"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not a hexadecimal number"),
        (&many, "too many header lines"),
        (&long, "its header is too long"),
    ] {
        let error = play(&[script.as_bytes()]).0.unwrap_err();
        assert!(error.contains(part), "{script:.60}: {error}");
    }
}

#[test]
fn a_refused_connection_is_an_error() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let text = format!("app=fetch url=http://{address}/");
    let config = Config::parse(text.as_bytes()).unwrap();
    let error = loopback::run(&config, &Context::new(())).unwrap_err();
    assert!(matches!(error, AppError::Fetch { .. }));
    let text = error.to_string();
    assert!(text.starts_with(&format!("fetch http://{address}/: cannot connect: ")), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn a_silent_server_times_out() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let text = format!("app=fetch url=http://{address}/ idle-timeout=1");
    let config = Config::parse(text.as_bytes()).unwrap();
    let error = loopback::run(&config, &Context::new(())).unwrap_err();
    assert!(error.to_string().contains("did nothing for too long"), "{error}");
}

#[test]
fn the_app_ends_when_it_has_finished() {
    let (asked, was_asked) = mpsc::channel();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut head = [0; 16];
        socket.read_exact(&mut head).unwrap();
        asked.send(head).unwrap();
        socket.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let config = Config::parse(format!("app=fetch url=http://{address}").as_bytes()).unwrap();
    let context = Context::new(());
    loopback::run(&config, &context).unwrap();
    server.join().unwrap();
    assert_eq!(was_asked.recv().unwrap(), *b"GET / HTTP/1.1\r\n");
    assert_eq!(
        (context.counters.connections_total.get(), context.counters.connections_open.get()),
        (1, 0)
    );
}
