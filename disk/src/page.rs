//! A page that shows who talks with this domain, and the same as JSON.

use crate::neighbours::{Neighbour, Neighbours, Role};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::future::pending;
use core::pin::pin;
use edge_nal::{Close, TcpAccept, TcpShutdown};
use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

/// The most readers of the page at a time, and how long each may take.
const READERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// The most bytes of a request.
const REQUEST: usize = 4096;

/// What comes before the table's rows. It has no scripts: browsers load it again every two seconds.
const HEAD: &str = "<!doctype html>
<html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"2\">
<meta name=\"viewport\" content=\"width=device-width\">
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
div { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2),
th:nth-child(3), td:nth-child(3) { text-align: left }
.gone { opacity: .5 }
</style>
";

/// Shows the neighbours to whoever connects. Ends only if nobody can be accepted any more.
pub async fn serve<A: TcpAccept>(acceptor: &A, title: &str, neighbours: &Neighbours) -> A::Error {
    let mut readers = FuturesUnordered::new();
    loop {
        let has_room = readers.len() < READERS;
        let accept = async { if has_room { acceptor.accept().await } else { pending().await } };
        let serve = async {
            if readers.next().await.is_none() {
                pending().await
            }
        };
        let accepted = match select(pin!(accept), pin!(serve)).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(((), _)) => continue,
        };
        match accepted {
            Ok((_, mut socket)) => readers.push(async move {
                let answered = with_timeout(PATIENCE, answer(&mut socket, title, neighbours)).await;
                if !matches!(answered, Ok(Ok(()))) {
                    log::debug!("a reader of the page has left or is slow");
                }
            }),
            Err(error) => return error,
        }
    }
}

async fn answer<S: Read + Write + TcpShutdown>(
    socket: &mut S,
    title: &str,
    neighbours: &Neighbours,
) -> Result<(), S::Error> {
    let mut request = Vec::new();
    let mut piece = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match socket.read(&mut piece).await? {
            0 => return Ok(()),
            count => request.extend_from_slice(&piece[..count]),
        }
        if request.len() > REQUEST {
            return Ok(());
        }
    }
    let (status, kind, body) = respond(&request, title, neighbours);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    socket.flush().await?;
    socket.close(Close::Write).await
}

fn respond(
    request: &[u8],
    title: &str,
    neighbours: &Neighbours,
) -> (&'static str, &'static str, String) {
    let (text, html) = ("text/plain; charset=utf-8", "text/html; charset=utf-8");
    let mut words = request.split(u8::is_ascii_whitespace);
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/")) => ("200 OK", html, page(title, &neighbours.list())),
        (Some(b"GET"), Some(b"/status.json")) => {
            ("200 OK", "application/json", json(title, &neighbours.list()))
        }
        (Some(b"GET"), _) => ("404 Not Found", text, "there are / and /status.json\n".to_string()),
        _ => ("405 Method Not Allowed", text, "only GET\n".to_string()),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Server => "server",
        Role::Client => "client",
    }
}

fn state(neighbour: &Neighbour) -> &'static str {
    match (neighbour.is_connected(), neighbour.role) {
        (true, _) => "connected",
        (false, Role::Server) => "waiting",
        (false, Role::Client) => "gone",
    }
}

/// What is shown of each neighbour beside its address, role and state.
fn figures(neighbour: &Neighbour) -> [(&'static str, u64); 7] {
    let counts = neighbour.counts();
    [
        ("connections", counts.connections),
        ("transactions", counts.transactions),
        ("failures", counts.failures),
        ("read", counts.read),
        ("written", counts.written),
        ("hits", counts.hits),
        ("misses", counts.misses),
    ]
}

fn page(title: &str, neighbours: &[alloc::rc::Rc<Neighbour>]) -> String {
    let title = escaped(title);
    let mut page = format!("{HEAD}<title>{title}</title>\n<h1>{title}</h1>\n<div><table>\n");
    page += "<tr><th>neighbour<th>role<th>state<th>connections<th>transactions<th>failures\
             <th>bytes read<th>bytes written<th>hits<th>misses\n";
    for neighbour in neighbours {
        let (address, state) = (escaped(&neighbour.address), state(neighbour));
        let role = role(neighbour.role);
        let _ = write!(page, "<tr class=\"{state}\"><td>{address}<td>{role}<td>{state}");
        for (_, figure) in figures(neighbour) {
            let _ = write!(page, "<td>{figure}");
        }
        page.push('\n');
    }
    page += "</table></div>\n<p><a href=\"/status.json\">/status.json</a>\n";
    page
}

fn json(title: &str, neighbours: &[alloc::rc::Rc<Neighbour>]) -> String {
    let mut json = format!("{{\"title\":{},\"neighbours\":[", quoted(title));
    for (number, neighbour) in neighbours.iter().enumerate() {
        let (address, comma) = (quoted(&neighbour.address), if number > 0 { "," } else { "" });
        let (role, state) = (role(neighbour.role), state(neighbour));
        let _ = write!(
            json,
            "{comma}{{\"address\":{address},\"role\":\"{role}\",\"state\":\"{state}\""
        );
        for (name, figure) in figures(neighbour) {
            let _ = write!(json, ",\"{name}\":{figure}");
        }
        json.push('}');
    }
    json + "]}\n"
}

/// Text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..='\u{1f}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_json_show_each_neighbour() {
        let neighbours = Neighbours::default();
        let client = neighbours.connected("xen:7".into(), Role::Client);
        client.count(|counts| (counts.read, counts.hits) = (4096, 3));
        neighbours.expected("xen:0/disk".into(), Role::Server);
        let title = "a \"cache\" of <1 block>";
        let (status, _, page) = respond(b"GET / HTTP/1.1\r\n\r\n", title, &neighbours);
        assert_eq!(status, "200 OK");
        assert!(page.contains("<h1>a &quot;cache&quot; of &lt;1 block></h1>"), "{page}");
        let row = "<tr class=\"connected\"><td>xen:7<td>client<td>connected\
                   <td>1<td>0<td>0<td>4096<td>0<td>3<td>0\n";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("<td>xen:0/disk<td>server<td>waiting<td>0"), "{page}");
        let (_, kind, json) = respond(b"GET /status.json HTTP/1.1\r\n\r\n", title, &neighbours);
        assert_eq!(kind, "application/json");
        assert_eq!(
            json,
            "{\"title\":\"a \\\"cache\\\" of <1 block>\",\"neighbours\":[\
             {\"address\":\"xen:0/disk\",\"role\":\"server\",\"state\":\"waiting\",\
             \"connections\":0,\"transactions\":0,\"failures\":0,\"read\":0,\"written\":0,\
             \"hits\":0,\"misses\":0},\
             {\"address\":\"xen:7\",\"role\":\"client\",\"state\":\"connected\",\
             \"connections\":1,\"transactions\":0,\"failures\":0,\"read\":4096,\"written\":0,\
             \"hits\":3,\"misses\":0}]}\n"
        );
    }

    #[test]
    fn other_requests_are_refused() {
        let neighbours = Neighbours::default();
        for (request, status) in [
            (&b"GET /other HTTP/1.1\r\n\r\n"[..], "404 Not Found"),
            (b"POST / HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            (b"\r\n\r\n", "405 Method Not Allowed"),
        ] {
            assert_eq!(respond(request, "", &neighbours).0, status);
        }
    }

    #[test]
    fn control_characters_are_escaped_in_json() {
        assert_eq!(quoted("a\\\n"), "\"a\\\\\\u000a\"");
    }
}
