//! The entries that the journal gets.

#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use rig::{DOM0, client, guests};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use xen::testing::FakeStore;
use xen::xenstore::{Access, Permission};
use xen::{DomId, Errno};
use xen_linux::runtime::Runtime;
use xensockd::logging;
use xensockd::sandbox::{Files, confine};

/// Set in the process that has a `/run` of its own.
const INSIDE: &str = "XENSOCKD_TEST_JOURNAL";

/// Where the journal's daemon listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

#[test]
fn an_entry_about_a_guest_has_its_name_its_number_and_a_priority() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let test = std::env::current_exe().unwrap();
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && exec \"$0\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(test);
    let output = unshare.env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.starts_with("unshare: ") {
        eprintln!("skipped: this machine allows no user namespaces: {said}");
        return;
    }
    let outcome = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && outcome.contains("1 passed"), "{outcome}{said}");
}

fn inside() {
    let journal = UnixDatagram::bind(Path::new(JOURNAL)).unwrap();
    journal.set_nonblocking(true).unwrap();
    logging::start_journal().unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let none = Path::new("/nowhere/at/all");
    confine(&Files { rules: none, control: none }).unwrap();

    let mut runtime = Runtime::new().unwrap();
    let (tree, guests, id) = (FakeStore::new(), guests(""), DomId(7));
    let store = client(&tree, DOM0, runtime.spawner());
    tree.add_domain(id);
    tree.write("/local/domain/7/name", "web");
    let readable = [(Access::None, DOM0), (Access::Read, id)];
    let readable = readable.map(|(access, domain)| Permission { access, domain });
    tree.set_permissions("/local/domain/7/name", &readable);
    let refused = async {
        let guest = guests.meet(&store, id).await;
        guest.check_connect("127.0.0.1:22".parse().unwrap())
    };
    assert_eq!(runtime.block_on(refused).unwrap(), Err(Errno::EACCES));

    let mut entries = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(count) = journal.recv(&mut bytes) {
        entries.push(fields(&bytes[..count]));
    }
    let find = |text: &str| {
        let has = |entry: &&Vec<(String, String)>| {
            entry.iter().any(|(name, value)| name == "MESSAGE" && value.contains(text))
        };
        entries.iter().find(has).unwrap_or_else(|| panic!("no {text:?} in {entries:?}"))
    };
    // `warning` and `notice` of syslog.
    let lines = [("connect to 127.0.0.1:22 is refused: ", "4"), ("its rules are", "5")];
    for (text, priority) in lines {
        let entry = find(text);
        for (name, value) in [
            ("PRIORITY", priority),
            ("SYSLOG_IDENTIFIER", "xensockd"),
            ("DOMID", "7"),
            ("GUEST", "web"),
        ] {
            assert!(entry.contains(&(name.into(), value.into())), "no {name}={value}: {entry:?}");
        }
        let start = |(name, value): &(String, String)| {
            name == "MESSAGE" && value.starts_with("domain 7 (web): ")
        };
        assert!(entry.iter().any(start), "{entry:?}");
    }
}

/// The fields of an entry in the journal's protocol: `NAME=VALUE`, or the name, a length and as
/// many bytes.
fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Vec::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        match line.iter().position(|byte| *byte == b'=') {
            Some(place) => {
                all.push((text(&line[..place]), text(&line[place + 1..])));
                entry = rest;
            }
            None => {
                let (len, rest) = rest.split_first_chunk().unwrap();
                let (value, rest) = rest.split_at(u64::from_le_bytes(*len) as usize);
                all.push((text(line), text(value)));
                entry = &rest[1..];
            }
        }
    }
    all
}
