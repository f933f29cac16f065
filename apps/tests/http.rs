//! The HTTP app over real sockets.

mod loopback;

use loopback::{HalfClose, Server, is_closed, rest};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A limit for silent clients. Those that are not silent send much sooner, even on a busy machine.
const IDLE: &str = "idle-timeout=5";

/// A parsed response.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn length(&self) -> u64 {
        self.header("Content-Length").expect("a length").parse().expect("a number")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Reads a head without a body, as for `HEAD` and `100 Continue`.
fn head(client: &mut TcpStream) -> Response {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap_or_else(|error| {
            panic!("{error} after {:?}", String::from_utf8_lossy(&head));
        });
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    Response { status, head, body: Vec::new() }
}

/// Reads a response by its length.
fn response(client: &mut TcpStream) -> Response {
    let mut response = head(client);
    response.body = vec![0; response.length() as usize];
    client.read_exact(&mut response.body).unwrap();
    response
}

/// Sends `request` over a new connection and reads one response.
fn ask(server: &Server, request: impl AsRef<[u8]>) -> Response {
    let mut client = server.connect();
    client.write_all(request.as_ref()).unwrap();
    response(&mut client)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn hex_sum(data: impl AsRef<[u8]>) -> String {
    let sum = Sha256::digest(data);
    sum.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_string()]).collect()
}

#[test]
fn each_page_is_served() {
    let server = Server::start("");
    let mut client = server.connect();
    for (path, kind, part) in [
        ("/", "text/html; charset=utf-8", "<!DOCTYPE html>"),
        ("/?query=1", "text/html; charset=utf-8", "<!DOCTYPE html>"),
        ("/healthz", "text/plain; charset=utf-8", "ok\n"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "\nxensock_ports_open 7\n"),
    ] {
        client.write_all(get(path).as_bytes()).unwrap();
        let response = response(&mut client);
        assert_eq!((response.status, response.header("Content-Type")), (200, Some(kind)), "{path}");
        assert_eq!(response.header("Connection"), Some("keep-alive"));
        assert!(response.text().contains(part), "{path}");
    }
    client.write_all(get("/metrics").as_bytes()).unwrap();
    let numbers = response(&mut client);
    for line in ["xensock_app_connections_total 1", "xensock_app_requests_total 5"] {
        assert!(numbers.text().lines().any(|other| other == line), "{}", numbers.text());
    }
}

#[test]
fn a_browser_is_told_what_the_page_may_load_and_to_trust_no_other_type() {
    let server = Server::start("");
    let page = ask(&server, get("/"));
    let policy = page.header("Content-Security-Policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; connect-src 'self'; "), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    for path in ["/", "/healthz", "/metrics", "/bytes/9", "/nowhere"] {
        let response = ask(&server, get(path));
        assert_eq!(response.header("X-Content-Type-Options"), Some("nosniff"), "{path}");
        assert_eq!(response.header("Content-Security-Policy").is_some(), path == "/", "{path}");
    }
}

#[test]
fn head_gives_the_length_of_get_and_no_body() {
    let server = Server::start("");
    let mut client = server.connect();
    for path in ["/healthz", "/bytes/1099511627776", "/bytes/0", "/nowhere", "/bytes/x", "/"] {
        write!(client, "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let bare = head(&mut client);
        if path.starts_with("/bytes/1") {
            assert_eq!((bare.status, bare.length()), (200, 1 << 40));
            continue;
        }
        client.write_all(get(path).as_bytes()).unwrap();
        let full = response(&mut client);
        assert_eq!(bare.status, full.status, "{path}");
        // The page's numbers grow between the two.
        if path != "/" {
            assert_eq!(bare.length(), full.length(), "{path}");
        }
    }
}

#[test]
fn bytes_are_their_offset_modulo_251() {
    let server = Server::start("");
    let mut client = server.connect();
    for count in [0, 1, 250, 251, 252, 65_536, 65_787, 1_000_003] {
        client.write_all(get(&format!("/bytes/{count}")).as_bytes()).unwrap();
        let response = response(&mut client);
        assert_eq!((response.status, response.length()), (200, count));
        let wrong = response.body.iter().enumerate().find(|(at, byte)| at % 251 != **byte as usize);
        assert_eq!(wrong, None);
    }
    client.write_all(get("/bytes/1099511627777").as_bytes()).unwrap();
    let refused = response(&mut client);
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("1099511627776"), "{}", refused.text());
}

#[test]
fn a_client_may_leave_during_a_long_download() {
    let server = Server::start("");
    let mut client = server.connect();
    client.write_all(get("/bytes/1099511627776").as_bytes()).unwrap();
    assert_eq!(head(&mut client).status, 200);
    client.read_exact(&mut vec![0; 1 << 20]).unwrap();
    drop(client);
    assert_eq!(ask(&server, get("/healthz")).text(), "ok\n");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start("");
    let body = "5\r\nhello\r\n0\r\n\r\n";
    let requests = [
        get("/healthz"),
        "\r\n".to_string(),
        format!("POST /sum HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}"),
        get("/bytes/3"),
        "POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_string(),
        "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nGET ".to_string(),
        get("/nowhere"),
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_string(),
        get("/healthz"),
    ];
    let whole = requests.concat();
    for piece in [whole.len(), 1, 7] {
        let mut client = server.connect();
        client.set_nodelay(true).unwrap();
        for piece in whole.as_bytes().chunks(piece) {
            client.write_all(piece).unwrap();
        }
        let mut next = || response(&mut client);
        assert_eq!(next().text(), "ok\n");
        assert_eq!(next().text(), hex_sum("hello"));
        assert_eq!(next().body, [0, 1, 2]);
        assert_eq!(next().text(), hex_sum("abc"));
        assert_eq!(next().text(), "ok\n");
        assert_eq!(next().status, 404);
        let last = next();
        assert_eq!((last.text(), last.header("Connection")), ("ok\n", Some("close")));
        assert_eq!(rest(&mut client), "", "something follows the last response");
    }
}

#[test]
fn pipelined_requests_may_exceed_the_buffer() {
    let server = Server::start("");
    let mut client = server.connect();
    let count = 2000;
    let requests: String = (0..count).map(|number| get(&format!("/bytes/{number}"))).collect();
    let mut sender = client.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(requests.as_bytes()).unwrap());
    for number in 0..count {
        assert_eq!(response(&mut client).length(), number);
    }
    sending.join().unwrap();
}

#[test]
fn ten_megabytes_are_summed_by_length_and_in_chunks() {
    let server = Server::start("");
    let data: Vec<u8> =
        (0..10_000_000u32).map(|at| (at.wrapping_mul(2654435761) >> 9) as u8).collect();
    let mut client = server.connect();
    write!(client, "POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", data.len())
        .unwrap();
    client.write_all(&data).unwrap();
    let by_length = response(&mut client);
    assert_eq!((by_length.status, by_length.text()), (200, hex_sum(&data).as_str()));

    write!(client, "POST /sum HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let mut left = data.as_slice();
    // Chunks of very different sizes, some across the server's buffer, some with extensions.
    for size in [1, 2, 15, 16, 16_383, 16_384, 16_385, 100_000].into_iter().cycle() {
        let (chunk, after) = left.split_at(left.len().min(size));
        left = after;
        let extension = if size % 2 == 0 { ";note=\"even\"" } else { "" };
        write!(client, "{:X}{extension}\r\n", chunk.len()).unwrap();
        client.write_all(chunk).unwrap();
        client.write_all(b"\r\n").unwrap();
        if left.is_empty() {
            break;
        }
    }
    client.write_all(b"0\r\nTrailer: 1\r\n\r\n").unwrap();
    assert_eq!(response(&mut client).text(), hex_sum(&data));

    client.write_all(b"POST /sum HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(response(&mut client).text(), hex_sum(""));
}

#[test]
fn a_sink_counts_bytes_by_length_and_in_chunks() {
    let server = Server::start("");
    let mut client = server.connect();
    let post = "POST /sink HTTP/1.1\r\nHost: x\r\n";
    write!(client, "{post}Content-Length: 5000000\r\n\r\n").unwrap();
    client.write_all(&vec![b'x'; 5_000_000]).unwrap();
    assert_eq!(response(&mut client).text(), "5000000\n");
    write!(client, "{post}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(response(&mut client).text(), "6\n");
    write!(client, "{post}\r\n").unwrap();
    assert_eq!(response(&mut client).text(), "0\n");
    write!(client, "{post}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(head(&mut client).status, 100);
    client.write_all(b"hello").unwrap();
    assert_eq!(response(&mut client).text(), "5\n");
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let server = Server::start("");
    let mut client = server.connect();
    let expect = "Host: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    write!(client, "POST /sum HTTP/1.1\r\n{expect}").unwrap();
    assert_eq!(head(&mut client).status, 100);
    client.write_all(b"hello").unwrap();
    assert_eq!(response(&mut client).text(), hex_sum("hello"));
    // A client that sends at once needs no 100 Continue; a request for a wrong path gets its
    // response.
    let at_once = format!("POST /sum HTTP/1.1\r\n{expect}hello");
    client.write_all(at_once.as_bytes()).unwrap();
    assert_eq!(response(&mut client).status, 200);
    write!(client, "POST /nowhere HTTP/1.1\r\n{expect}").unwrap();
    let refused = response(&mut client);
    assert_eq!((refused.status, refused.header("Connection")), (404, Some("close")));
}

#[test]
fn a_refused_method_is_answered_with_the_allowed_ones() {
    let server = Server::start("");
    let mut client = server.connect();
    for (method, path, status, allow) in [
        ("POST", "/", 405, Some("GET, HEAD")),
        ("PUT", "/healthz", 405, Some("GET, HEAD")),
        ("DELETE", "/bytes/7", 405, Some("GET, HEAD")),
        ("OPTIONS", "/metrics", 405, Some("GET, HEAD")),
        ("GET", "/sum", 405, Some("POST")),
        ("PUT", "/sink", 405, Some("POST")),
        ("PATCH", "/nowhere", 404, None),
    ] {
        write!(client, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx")
            .unwrap();
        let response = response(&mut client);
        assert_eq!((response.status, response.header("Allow")), (status, allow), "{method} {path}");
        assert_eq!(response.header("Connection"), Some("keep-alive"));
        assert_eq!(response.text().lines().count(), 1);
    }
}

#[test]
fn invalid_requests_are_refused_with_a_reason_and_a_close() {
    let server = Server::start("");
    let long_header = format!("GET / HTTP/1.1\r\nHost: x\r\nName: {}\r\n\r\n", "v".repeat(20_000));
    let long_path = get(&format!("/{}", "x".repeat(20_000)));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "N: v\r\n".repeat(100));
    let post = "POST /sum HTTP/1.1\r\nHost: x\r\n";
    for (request, status) in [
        ("nonsense\r\n\r\n".to_string(), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_string(), 400),
        ("GET / HTTP/3.0\r\n\r\n".to_string(), 505),
        ("BREW / HTTP/1.1\r\nHost: x\r\n\r\n".to_string(), 501),
        (format!("{post}Content-Length: x\r\n\r\n"), 400),
        (format!("{post}Content-Length: 99999999999999999999\r\n\r\n"), 413),
        (format!("{post}Transfer-Encoding: gzip\r\n\r\n"), 501),
        (format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\nx\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n"), 400),
        (format!("{post}Expect: tea\r\n\r\n"), 417),
        (long_header, 431),
        (many, 431),
        (long_path, 414),
    ] {
        let mut client = server.connect();
        client.write_all(request.as_bytes()).unwrap();
        let response = response(&mut client);
        assert_eq!(response.status, status, "{request:.60}");
        assert_eq!(response.header("Connection"), Some("close"));
        assert!(response.text().ends_with(".\n"), "{}", response.text());
        assert_eq!(rest(&mut client), "", "{request:.60}");
    }
}

#[test]
fn a_small_unwanted_body_is_skipped_and_a_large_one_refused() {
    let server = Server::start("");
    let mut client = server.connect();
    let body = "x".repeat(64 << 10);
    let get = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    write!(client, "{get}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    assert_eq!(response(&mut client).text(), "ok\n");
    write!(client, "{get}Transfer-Encoding: chunked\r\n\r\n10000\r\n{body}\r\n0\r\n\r\n").unwrap();
    assert_eq!(response(&mut client).text(), "ok\n");
    for request in [
        format!("{get}Content-Length: 65537\r\n\r\n{body}x"),
        format!("{get}Transfer-Encoding: chunked\r\n\r\n10001\r\n{body}x\r\n0\r\n\r\n"),
        format!("{get}Content-Length: {}\r\n\r\n", u64::MAX),
    ] {
        let mut client = server.connect();
        client.write_all(request.as_bytes()).unwrap();
        let refused = response(&mut client);
        assert_eq!((refused.status, refused.header("Connection")), (413, Some("close")));
        assert_eq!(rest(&mut client), "");
    }
}

#[test]
fn a_response_arrives_while_the_client_is_still_sending() {
    for half_close in [HalfClose::Works, HalfClose::IsUnknown] {
        let server = Server::start_where(half_close, "");
        for (path, status) in [("/nowhere", 404), ("/healthz", 413)] {
            let mut client = server.connect();
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n");
            client.write_all(request.as_bytes()).unwrap();
            client.write_all(&[b'x'; 900_000]).unwrap();
            assert_eq!(response(&mut client).status, status);
            assert_eq!(rest(&mut client), "");
        }
    }
}

#[test]
fn a_stack_without_half_close_ends_connections_at_once() {
    let server = Server::start_where(HalfClose::IsUnknown, "");
    let mut waits: Vec<_> = (0..9)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(b"GET /bytes/100000 HTTP/1.0\r\n\r\n").unwrap();
            assert_eq!(response(&mut client).body.len(), 100_000);
            let start = Instant::now();
            assert_eq!(rest(&mut client), "");
            start.elapsed()
        })
        .collect();
    waits.sort();
    // A server that waits for the client does so for two seconds each time.
    assert!(waits[4] < Duration::from_secs(1), "{waits:?}");
}

#[test]
fn http_1_0_connections_close_unless_kept_alive() {
    let server = Server::start("");
    let answer = server.exchange("GET /healthz HTTP/1.0\r\n\r\n");
    assert!(answer.contains("\r\nConnection: close\r\n") && answer.ends_with("ok\n"), "{answer}");
    let mut client = server.connect();
    for _ in 0..3 {
        client.write_all(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let response = response(&mut client);
        assert_eq!(response.header("Connection"), Some("keep-alive"));
    }
}

#[test]
fn a_client_that_closed_its_half_gets_the_response() {
    let server = Server::start("");
    let answer = server.exchange(get("/bytes/100000"));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    let both = server.exchange([get("/healthz"), get("/healthz")].concat());
    assert_eq!(both.matches("\r\n\r\nok\n").count(), 2, "{both}");
}

#[test]
fn a_client_that_stops_in_the_middle_gets_408() {
    let server = Server::start(IDLE);
    let clients = [
        "GET / HT",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello",
    ]
    .map(|request| {
        let mut client = server.connect();
        client.write_all(request.as_bytes()).unwrap();
        client
    });
    for mut client in clients {
        let refused = response(&mut client);
        assert_eq!((refused.status, refused.header("Connection")), (408, Some("close")));
        assert_eq!(rest(&mut client), "");
    }
}

#[test]
fn an_idle_connection_is_closed_without_a_response() {
    let server = Server::start(IDLE);
    let mut fresh = server.connect();
    let mut used = server.connect();
    used.write_all(get("/healthz").as_bytes()).unwrap();
    assert_eq!(response(&mut used).status, 200);
    let start = Instant::now();
    assert_eq!(rest(&mut fresh), "");
    assert_eq!(rest(&mut used), "");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_slow_client_is_served() {
    let server = Server::start(IDLE);
    let mut client = server.connect();
    client.set_nodelay(true).unwrap();
    for byte in get("/healthz").bytes() {
        client.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(response(&mut client).text(), "ok\n");
    // It takes longer than the idle limit, but is never idle for so long.
    client.write_all(b"POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n").unwrap();
    for byte in *b"twenty small letters" {
        std::thread::sleep(Duration::from_millis(300));
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(response(&mut client).text(), hex_sum("twenty small letters"));
}

#[test]
fn a_body_that_ends_early_is_not_summed() {
    let server = Server::start("");
    for body in
        ["Content-Length: 9\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
    {
        let mut client = server.connect();
        write!(client, "POST /sum HTTP/1.1\r\nHost: x\r\n{body}").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(is_closed(&mut client), "{body}");
    }
    let numbers = ask(&server, get("/metrics"));
    assert!(numbers.text().contains("\nxensock_app_connections_failed_total 2\n"));
}

#[test]
fn two_hundred_connections_are_served_concurrently() {
    let server = Server::start("max-connections=200");
    let mut clients: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for _ in 0..3 {
        for client in &mut clients {
            client.write_all(get("/bytes/1000").as_bytes()).unwrap();
        }
        for client in clients.iter_mut().rev() {
            assert_eq!(response(client).body.len(), 1000);
        }
    }
}
