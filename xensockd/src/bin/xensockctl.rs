//! Asks a running daemon: what its guests have, and to change it.

use clap::Parser;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use xensockd::control::arguments::{Arguments, Command};
use xensockd::control::{GuestStatus, Kind, Reply, Request, SocketStatus, Status};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xensockctl: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let ask = |request: &Request| ask(&arguments.control, request);
    match &arguments.command {
        Command::Status { json, watch } => loop {
            let status = ask(&Request::Status)?.status()?;
            let text = if *json { line(&status)? } else { table(&status) };
            // Clears the terminal's screen.
            show(&if *watch && !json { format!("\x1b[H\x1b[2J{text}") } else { text })?;
            if !watch {
                return Ok(());
            }
            thread::sleep(Duration::from_secs(2));
        },
        Command::Guest { name, json } => {
            let status = ask(&Request::Status)?.status()?;
            let guest = status.guest(name).ok_or_else(|| {
                format!("no guest {name} has a device for sockets; `xensockctl status` shows all")
            })?;
            show(&if *json { line(guest)? } else { details(guest) })
        }
        Command::Metrics => match ask(&Request::Metrics)? {
            Reply::Metrics(text) => show(&text),
            other => other.status().map(drop),
        },
        Command::Close { guest, socket } => {
            ask(&Request::Close { guest: guest.clone(), socket: *socket })?.done()
        }
        Command::Reload => ask(&Request::Reload)?.done(),
        Command::Restart => {
            ask(&Request::Restart)?.done()?;
            let start = Instant::now();
            loop {
                thread::sleep(Duration::from_millis(100));
                match ask(&Request::Status) {
                    Ok(reply) => return reply.status().map(drop),
                    Err(reason) if start.elapsed() > PATIENCE => return Err(reason),
                    Err(_) => {}
                }
            }
        }
        Command::LogLevel { level } => ask(&Request::LogLevel(level.to_string()))?.done(),
    }
}

fn ask(path: &Path, request: &Request) -> Result<Reply, String> {
    let exchange = || -> io::Result<Reply> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
        let mut reply = String::new();
        BufReader::new(socket).read_line(&mut reply)?;
        Ok(serde_json::from_str(&reply)?)
    };
    exchange().map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => "is xensockd running?",
            io::ErrorKind::PermissionDenied => "run xensockctl as root",
            _ => "the daemon's log may say more",
        };
        format!("cannot ask the daemon at {}: {error}; {advice}", path.display())
    })
}

/// What the client does with a reply.
trait Outcome {
    fn status(self) -> Result<Status, String>;
    fn done(self) -> Result<(), String>;
}

impl Outcome for Reply {
    fn status(self) -> Result<Status, String> {
        match self {
            Reply::Status(status) => Ok(status),
            Reply::Failed(reason) => Err(reason),
            Reply::Done(_) | Reply::Metrics(_) => {
                Err("this is not a reply of this version of the daemon".into())
            }
        }
    }

    fn done(self) -> Result<(), String> {
        match self {
            Reply::Done(said) => show(&format!("{said}\n")),
            other => other.status().map(drop),
        }
    }
}

fn show(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) => Err(format!("cannot print: {error}")),
        Ok(()) => Ok(()),
    }
}

fn line(value: &impl serde::Serialize) -> Result<String, String> {
    serde_json::to_string(value).map(|json| json + "\n").map_err(|error| error.to_string())
}

/// A text of at most this width, with a sign if some of it is missing.
fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['~']).collect(),
        false => text.to_string(),
    }
}

/// A number of bytes in five characters.
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1000 {
        return bytes.to_string();
    }
    let mut value = bytes as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 999.5 {
        value /= 1000.0;
        unit = units.next();
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$}{}", unit.copied().unwrap_or_default())
}

/// A time in at most six characters.
fn age(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match hours {
        0 if minutes == 0 => format!("{seconds}s"),
        0 => format!("{minutes}m{:02}s", seconds % 60),
        1..48 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{}d", hours / 24),
    }
}

/// All guests, in at most 80 columns.
fn table(status: &Status) -> String {
    let Status { version, rules, mappings, ports, guests } = status;
    let mut text = format!("xensockd {version}; {mappings} mappings, {ports} event channels\n");
    let _ = writeln!(text, "{rules}\n");
    let _ = writeln!(
        text,
        "{:>5} {:24} {:>13} {:>13} {:>6} {:>6}  OPEN",
        "ID", "NAME", "SOCKETS", "RING PAGES", "IN", "OUT"
    );
    for guest in guests {
        let sum = |of: fn(&SocketStatus) -> u64| guest.sockets.iter().map(of).sum();
        let _ = writeln!(
            text,
            "{:>5} {:24} {:>13} {:>13} {:>6} {:>6}  {}",
            guest.domain,
            cut(guest.name.as_deref().unwrap_or("-"), 24),
            format!("{}/{}", guest.sockets_used, guest.sockets_limit),
            format!("{}/{}", guest.ring_pages_used, guest.ring_pages_limit),
            amount(sum(|socket| socket.bytes_in)),
            amount(sum(|socket| socket.bytes_out)),
            guest.sockets.len()
        );
    }
    text
}

/// One guest.
fn details(guest: &GuestStatus) -> String {
    let list = |all: &[String]| if all.is_empty() { "nothing".into() } else { all.join(", ") };
    let mut text = String::new();
    for (name, value) in [
        ("name", guest.name.clone().unwrap_or_else(|| "none".into())),
        ("domain", guest.domain.to_string()),
        ("UUID", guest.uuid.clone().unwrap_or_else(|| "unknown".into())),
        ("rules", guest.section.clone()),
        ("listen", guest.listen.clone()),
        ("connect", list(&guest.connect)),
        ("connect-deny", list(&guest.connect_deny)),
        ("sockets", format!("{} of {}", guest.sockets_used, guest.sockets_limit)),
        ("ring-pages", format!("{} of {}", guest.ring_pages_used, guest.ring_pages_limit)),
    ] {
        let _ = writeln!(text, "{name:13}{value}");
    }
    let _ = writeln!(
        text,
        "\n{:>6} {:7} {:21}    {:21} {:>6} {:>5} {:>5}",
        "SOCKET", "KIND", "LOCAL", "REMOTE", "AGE", "IN", "OUT"
    );
    for socket in &guest.sockets {
        let (kind, arrow) = match socket.kind {
            Kind::Listen => ("listen", "<="),
            Kind::Accept => ("accept", "<-"),
            Kind::Connect => ("connect", "->"),
            Kind::Datagrams => ("udp", "<>"),
        };
        let local = socket.local.map_or_else(|| "-".into(), |local| local.to_string());
        let _ = writeln!(
            text,
            "{:>6} {kind:7} {:21} {arrow} {:21} {:>6} {:>5} {:>5}",
            socket.number,
            cut(&local, 21),
            cut(&socket.remote.to_string(), 21),
            age(socket.age),
            amount(socket.bytes_in),
            amount(socket.bytes_out),
        );
    }
    let _ = writeln!(text, "\n{:>6} {:>21} {:>21}", "SOCKET", "UNREAD OF RING", "UNSENT OF RING");
    for socket in &guest.sockets {
        let Some(ring) = &socket.ring else { continue };
        let part =
            |used: u32, size: u32| format!("{} of {}", amount(used.into()), amount(size.into()));
        let [unread, unsent] =
            [part(ring.in_used, ring.in_size), part(ring.out_used, ring.out_size)];
        let _ = writeln!(text, "{:>6} {unread:>21} {unsent:>21}", socket.number);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use xensockd::control::RingStatus;

    fn guest(name: &str, number: u64) -> GuestStatus {
        let remote = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
        GuestStatus {
            domain: u16::MAX,
            name: Some(name.into()),
            uuid: None,
            section: "[defaults]".into(),
            listen: "[\"1024-65535\"]".into(),
            connect: vec!["remote".into()],
            connect_deny: vec![],
            sockets_used: 100_000,
            sockets_limit: 100_000,
            ring_pages_used: 100_000,
            ring_pages_limit: 100_000,
            sockets: vec![SocketStatus {
                number,
                kind: Kind::Connect,
                local: Some(remote),
                remote,
                age: 172_799,
                bytes_in: u64::MAX,
                bytes_out: 999_949,
                ring: Some(RingStatus {
                    in_size: 1 << 20,
                    in_used: 999_949,
                    out_size: 1 << 20,
                    out_used: 999_949,
                }),
            }],
        }
    }

    #[test]
    fn a_socket_s_number_is_not_the_control_socket() {
        let line = ["xensockctl", "close", "web", "5", "--socket", "/tmp/control"];
        let arguments = Arguments::try_parse_from(line).unwrap();
        assert_eq!(arguments.control, Path::new("/tmp/control"));
        assert!(matches!(arguments.command, Command::Close { socket: 5, .. }));
    }

    #[test]
    fn tables_fit_eighty_columns() {
        let status = Status {
            version: "0.1.0".into(),
            rules: "the rules of /etc/xensockd.toml".into(),
            mappings: 1,
            ports: 2,
            guests: vec![guest(&"x".repeat(60), 999_999), guest("web", 1)],
        };
        for text in [table(&status), details(&status.guests[0])] {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line:?} has {}", line.chars().count());
            }
        }
        assert_eq!(status.guest("web"), Some(&status.guests[1]));
        assert_eq!(status.guest("65535"), Some(&status.guests[0]));
        assert_eq!(status.guest("w"), None);
    }

    #[test]
    fn numbers_are_short() {
        for (bytes, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (99_949, "99.9K"),
            (99_950, "100K"),
            (999_499, "999K"),
            (999_500, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(amount(bytes), text, "{bytes}");
        }
        for (seconds, text) in [(0, "0s"), (61, "1m01s"), (3661, "1h01m"), (172_800, "2d")] {
            assert_eq!(age(seconds), text);
        }
    }
}
