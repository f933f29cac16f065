//! The page, over real TCP connections of this machine's loopback.

use disk::neighbours::Neighbours;
use disk::page;
use edge_nal::TcpBind;
use edge_nal_std::Stack;
use futures_executor::block_on;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Serves the page as long as the program runs.
fn start() -> SocketAddr {
    // The stack cannot say which port 0 became.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let acceptor = block_on(Stack::new().bind(free)).unwrap();
    thread::spawn(move || {
        let neighbours = Neighbours::default();
        panic!("{}", block_on(page::serve(&acceptor, "the title", &neighbours)));
    });
    free
}

fn answer(to: SocketAddr, request: &[&str]) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    for piece in request {
        stream.write_all(piece.as_bytes()).unwrap();
        thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_page_is_whole_html_that_loads_itself_again() {
    let page = answer(start(), &["GET / HT", "TP/1.1\r\nHost: x\r", "\n\r\n"]);
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    assert!(body.contains("<h1>the title</h1>") && body.contains("http-equiv=\"refresh\""));
    assert!(!body.contains("<script"), "it works without JavaScript");
}

#[test]
fn readers_that_say_nothing_keep_nobody_from_the_page_for_long() {
    let to = start();
    let _silent: Vec<_> = (0..9).map(|_| TcpStream::connect(to).unwrap()).collect();
    let json = answer(to, &["GET /status.json HTTP/1.1\r\n\r\n"]);
    assert!(json.ends_with("\r\n\r\n{\"title\":\"the title\",\"neighbours\":[]}\n"), "{json}");
}
