//! The program's command line.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use xensockd::user;

fn xensockd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xensockd")).args(arguments).output().unwrap()
}

/// Starts it as this user, with its files in a folder.
fn start(folder: &Path, more: &[&str]) -> Output {
    let [lock, control] = ["lock", "control"].map(|name| folder.join(name));
    let (lock, control) = (lock.to_str().unwrap(), control.to_str().unwrap());
    let user = user::current();
    let files = ["--user", &user, "--lock-file", lock, "--control", control];
    xensockd(&[&files, more].concat())
}

#[test]
fn version_and_help_are_printed() {
    let version = String::from_utf8(xensockd(&["--version"]).stdout).unwrap();
    assert_eq!(version, format!("xensockd {}\n", env!("CARGO_PKG_VERSION")));
    let help = String::from_utf8(xensockd(&["--help"]).stdout).unwrap();
    for option in ["--log-level", "--config", "--threads", "check"] {
        assert!(help.contains(option), "{help}");
    }
}

#[test]
fn without_xen_one_line_names_the_missing_device_and_the_remedy() {
    if Path::new("/dev/xen/gntdev").exists() {
        eprintln!("skipped: this machine runs under Xen");
        return;
    }
    let folder = std::env::temp_dir().join(format!("xensockd-start-{}", std::process::id()));
    let output = start(&folder, &[]);
    // Only root makes it.
    let _ = std::fs::remove_dir(folder);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("/dev/xen/gntdev") && message.contains("xen-gntdev"), "{message}");
}

#[test]
fn an_invalid_option_is_refused() {
    let output = xensockd(&["--threads", "65"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("1..=64"));
}

#[test]
fn a_file_of_rules_is_checked_and_a_mistake_has_its_place() {
    let folder = std::env::temp_dir().join(format!("xensockd-rules-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("rules.toml");
    let name = file.to_str().unwrap();
    let checked = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = xensockd(&["check", name]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (status, said) = checked("[guest.web]\nlisten = { 80 = \"10.0.0.5:8080\" }\n");
    assert_eq!(
        (status, &*said),
        (Some(0), &*format!("{name}: no mistakes, 1 entries for guests\n"))
    );
    let (status, said) = checked("[guest.web]\n  conect = [\"any\"]\n");
    assert_eq!(status, Some(1));
    assert!(said.contains(&format!("{name}:2:3: unknown key `conect`")), "{said}");
    std::fs::write(&file, "[guest.web]\nsockets = 0\n").unwrap();
    for config in [name, "/no/such/file"] {
        let output = start(&folder, &["--config", config]);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.lines().count() == 1 && said.contains(config), "{said}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_missing_user_is_refused() {
    let output = xensockd(&["--user", "nobody-has-this-name"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no user nobody-has-this-name"), "{said}");
}

#[test]
fn what_systemd_has_kept_is_taken_from_it_even_if_the_daemon_cannot_start() {
    let folder = std::env::temp_dir().join(format!("xensockd-kept-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let notify = folder.join("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --user nobody-has-this-name 3</dev/null";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_xensockd")]);
    shell.env("NOTIFY_SOCKET", &notify).env("LISTEN_FDNAMES", "7 0.0.0.0_80");
    assert_eq!(shell.output().unwrap().status.code(), Some(1));
    let mut said = [0; 100];
    let count = systemd.recv(&mut said).unwrap();
    assert_eq!(&said[..count], b"FDSTOREREMOVE=1\nFDNAME=7 0.0.0.0_80\n");
    std::fs::remove_dir_all(folder).unwrap();
}
