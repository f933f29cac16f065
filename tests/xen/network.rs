//! Guests with a network interface on dom0's bridge and their own network stack.

use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{
    Device, ECHO, HTTP, Load, PATIENCE, Service, comes_back_to, echo, exchange, fetch, pattern,
    rounds, sha256,
};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain, Interface};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::thread;
use std::time::Duration;

cases![
    a_page_is_served_at_an_address_from_dhcp,
    a_hundred_mb_each_way_have_the_right_digest,
    a_thousand_pings_are_answered,
    two_hundred_connections_at_once_leave_nothing_behind,
    downloads_are_right_despite_loss_reordering_duplicates_delay_and_corruption,
    corrupt_frames_are_dropped_and_counted,
    address_and_name_server_can_be_on_the_command_line,
    connections_work_over_ipv6,
    an_unknown_name_is_reported,
    names_are_resolved_over_xensock_too,
    a_dhcp_server_may_start_late_and_restart,
    jumbo_frames_are_used_if_the_toolstack_allows_them,
    an_interface_may_be_attached_late_and_replaced,
    connections_survive_a_lost_link,
    a_guest_with_an_interface_is_saved_and_restored_under_load,
    both_stacks_serve_at_once,
    frames_can_be_captured_live,
    destroying_a_guest_with_an_interface_prints_no_error,
];

/// The interface of a test's first guest.
fn first() -> Interface {
    Interface::FIRST
}

fn second() -> Interface {
    Interface::numbered(1)
}

fn over(interface: Interface, fixture: &Fixture, settings: &str) -> Result<Service> {
    Service::start_over(Device::Netfront(interface), fixture, HTTP, "http", settings)
}

/// Starts the http app and waits until it has its address.
fn http(fixture: &Fixture) -> Result<Service> {
    let guest = over(first(), fixture, "")?;
    guest.domain.wait_for("the address is", PATIENCE)?;
    Ok(guest)
}

/// The name of a guest's interface in dom0.
fn name_of_vif(domain: &Domain) -> Result<String> {
    Ok(format!("vif{}.0", domain.id()?.context("the domain has ended")?))
}

/// The digest of a complete download.
fn all_of_it(len: usize) -> String {
    sha256(&pattern(len))
}

fn a_page_is_served_at_an_address_from_dhcp(fixture: &Fixture) -> Result<()> {
    let guest = http(fixture)?;
    let page = String::from_utf8(guest.curl(&["--include", &guest.url("/")])?)?;
    ensure!(page.starts_with("HTTP/1.1 200") && page.contains("XenSock"), "{page}");
    let console = guest.domain.console()?;
    for said in [
        "the address is 10.0.2.130/25, the gateway 10.0.2.129",
        "MTU 1500, segmentation, checksums, two event channels",
    ] {
        ensure!(console.contains(said), "{console}");
    }
    // A download by dom0, whose stack does not fill in the checksums of its frames.
    let dom0 = fixture.lab()?;
    let url = format!("http://{}:{}/bytes/1000003", first().address(), guest.inner_port);
    let digest = dom0.run(&format!("wget -q -O - {url} | sha256sum"))?;
    ensure!(digest.starts_with(&all_of_it(1_000_003)), "{digest}");
    Ok(())
}

fn a_hundred_mb_each_way_have_the_right_digest(fixture: &Fixture) -> Result<()> {
    let guest = http(fixture)?;
    let body = pattern(100_000_000);
    let wanted = sha256(&body);
    let got = sha256(&guest.curl(&[&guest.url("/bytes/100000000")])?);
    ensure!(got == wanted, "{got} came out of the guest, not {wanted}");
    let got = guest.sum(&body)?;
    ensure!(got == wanted, "{got} came into the guest, not {wanted}");
    Ok(())
}

fn a_thousand_pings_are_answered(fixture: &Fixture) -> Result<()> {
    let guest = http(fixture)?;
    let address = first().address();
    let dom0 = fixture.lab()?;
    for size in [56, 1400] {
        let count = if size == 56 { 1000 } else { 100 };
        let said = dom0.run(&format!("ping -q -c {count} -i 0.005 -s {size} {address}"))?;
        ensure!(said.contains(" 0% packet loss"), "{size} bytes: {said}");
    }
    ensure!(guest.is_served());
    Ok(())
}

fn two_hundred_connections_at_once_leave_nothing_behind(fixture: &Fixture) -> Result<()> {
    let guest = http(fixture)?;
    guest.get("/healthz")?;
    let held = || -> Result<_> {
        let numbers = guest.metrics()?;
        Ok(["grants_in_use", "ports_open", "sockets_open"].map(|name| numbers[name]))
    };
    let before = held()?;
    let mut open = Vec::new();
    for count in 0..200 {
        open.push(guest.connect().with_context(|| format!("connection {count}"))?);
        // QEMU's forwarder queues a single connection.
        thread::sleep(Duration::from_millis(20));
    }
    for stream in &mut open {
        stream.write_all(b"GET /bytes/1000 HTTP/1.0\r\n\r\n")?;
    }
    for (count, stream) in open.iter_mut().enumerate() {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(|| format!("connection {count}"))?;
        ensure!(answer.ends_with(&pattern(1000)), "connection {count}: {} bytes", answer.len());
    }
    drop(open);
    comes_back_to(&before, held)
}

fn downloads_are_right_despite_loss_reordering_duplicates_delay_and_corruption(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    let server = http(fixture)?;
    let port = server.inner_port;
    // Frames to a guest leave dom0 by that guest's vif.
    let vif = name_of_vif(&server.domain)?;
    for fault in [
        "loss 1%",
        "delay 10ms reorder 25% 50%",
        "delay 50ms",
        "duplicate 5%",
        "delay 5ms 2ms loss 1% duplicate 1% reorder 5%",
    ] {
        let tc =
            |what: &str| dom0.run(&format!("/sbin/tc qdisc {what} dev {vif} root netem {fault}"));
        tc("add")?;
        // The faults apply to frames into the guest: acknowledgements, then data.
        let url = server.url("/bytes/2000000");
        let got = sha256(&server.curl(&[&url]).context(fault)?);
        ensure!(got == all_of_it(2_000_000), "{fault}: {got} came out of the guest");
        let body = pattern(1_000_000);
        let got = server.sum(&body).context(fault)?;
        ensure!(got == sha256(&body), "{fault}: {got} came into the guest");
        tc("del")?;
    }
    // Checksums of frames from outside dom0 are not filled in after netem corrupts them. For frames
    // of a guest, netem fills them in first.
    let spoil = |vif: &str| {
        dom0.run(&format!("/sbin/tc qdisc add dev {vif} root netem loss 1% corrupt 0.5%"))
    };
    spoil(&vif)?;
    let url = format!("http://{}:{port}/bytes/1000003", first().address());
    let config = format!(
        "{HTTP}\ncmdline = \"app=fetch url={url} stack=netfront\"\npvcalls = []\nvif = [\"{}\"]\n",
        second().vif()
    );
    let client = Domain::create_paused(dom0, "fetch", &config)?;
    spoil(&name_of_vif(&client)?)?;
    client.unpause()?;
    client.wait_for_end(PATIENCE)?;
    let console = client.console()?;
    ensure!(console.contains(&all_of_it(1_000_003)), "{console}");
    Ok(())
}

fn corrupt_frames_are_dropped_and_counted(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = http(fixture)?;
    let vif = name_of_vif(&guest.domain)?;
    dom0.run(&format!("/sbin/tc qdisc add dev {vif} root netem corrupt 5%"))?;
    // netem fills in the checksums of dom0's own frames before it corrupts them.
    let posted = dom0.run(&format!(
        "head -c 2000000 /dev/zero >/tmp/zeros; \
         (printf 'POST /sum HTTP/1.0\\r\\nContent-Length: 2000000\\r\\n\\r\\n'; \
         cat /tmp/zeros) | nc {} {} | tail -n 1",
        first().address(),
        guest.inner_port
    ))?;
    ensure!(posted.trim() == sha256(&vec![0; 2_000_000]), "{posted} came into the guest");
    dom0.run(&format!("/sbin/tc qdisc del dev {vif} root"))?;
    let dropped = guest.metrics()?["frames_dropped_total"];
    ensure!(dropped > 0, "no frame was spoiled");
    Ok(())
}

fn address_and_name_server_can_be_on_the_command_line(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let server = over(first(), fixture, "")?;
    let (port, to, dns) = (server.inner_port, first().address(), Interface::DOM0);
    dom0.run(&format!("start-dnsmasq --host-record=server.lab,{to}"))?;
    let here = "ip=10.0.2.140/25 gw=10.0.2.129";
    let url = format!("url=http://server.lab:{port}/bytes/1000003");
    let console = fetch(dom0, Device::Netfront(second()), &format!("{here} dns={dns} {url}"))?;
    ensure!(console.contains(&all_of_it(1_000_003)), "{console}");
    let console = fetch(dom0, Device::Netfront(second()), &format!("{here} {url}"))?;
    ensure!(console.contains("dns="), "without a server: {console}");
    dom0.run("start-dnsmasq")?;
    Ok(())
}

fn connections_work_over_ipv6(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let words = "app=http port=80 stack=netfront ip6=fd00::130/64 gw6=fd00::1";
    let config = format!("{HTTP}\ncmdline = \"{words}\"\n");
    let guest = Device::Netfront(first()).create(dom0, "http", &config)?;
    guest.wait_for("the link is up", PATIENCE)?;
    let said = dom0.run("ping -6 -q -c 20 -i 0.01 fd00::130")?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    let url = "url=http://[fd00::130]/bytes/1000003";
    let console = fetch(dom0, Device::Netfront(second()), &format!("ip6=fd00::131/64 {url}"))?;
    ensure!(console.contains(&all_of_it(1_000_003)), "{console}");
    Ok(())
}

fn an_unknown_name_is_reported(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let console = fetch(dom0, Device::Netfront(first()), "url=http://nowhere.lab/")?;
    ensure!(console.contains("cannot resolve nowhere.lab: "), "{console}");
    Ok(())
}

fn names_are_resolved_over_xensock_too(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let server = Service::http(fixture)?;
    let url = format!("url=http://dom0.lab:{}/bytes/1000003", server.inner_port);
    let console = fetch(dom0, Device::PvCalls, &format!("dns={} {url}", Interface::DOM0))?;
    ensure!(console.contains(&all_of_it(1_000_003)), "{console}");
    let nowhere = format!("dns={} url=http://nowhere.lab/", Interface::DOM0);
    let console = fetch(dom0, Device::PvCalls, &nowhere)?;
    ensure!(console.contains("cannot resolve nowhere.lab: "), "{console}");
    Ok(())
}

fn a_dhcp_server_may_start_late_and_restart(fixture: &Fixture) -> Result<()> {
    let server = ShortLeases::new(fixture.lab()?)?;
    let guest = over(first(), fixture, "")?;
    guest.domain.wait_for("the link is up", PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    ensure!(!guest.domain.console()?.contains("the address is"), "an address without a server");
    server.start()?;
    guest.domain.wait_for("the address is", PATIENCE)?;
    // The first lease has then ended. The guest asks for the next one after half of it.
    thread::sleep(ShortLeases::LEASE + Duration::from_secs(2));
    ensure!(!guest.domain.console()?.contains("is lost"), "the lease is not renewed");
    ensure!(guest.is_served());
    server.stop()?;
    guest.domain.wait_for("the address is lost", PATIENCE)?;
    server.start()?;
    wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))
}

/// udhcpd instead of dnsmasq, whose shortest lease is two minutes, until this is dropped.
struct ShortLeases<'d>(&'d Dom0);

impl<'d> ShortLeases<'d> {
    /// The guest has half of it for a renewal, whatever delays it.
    const LEASE: Duration = Duration::from_secs(12);

    /// Stops dnsmasq. No other server runs yet.
    fn new(dom0: &'d Dom0) -> Result<Self> {
        let configuration = format!(
            "interface xenbr0\nstart {to}\nend {to}\nmin_lease 1\noption lease {}\n\
             option subnet 255.255.255.128\noption router {}\n\
             lease_file /run/udhcpd.leases\npidfile /run/udhcpd.pid\n",
            Self::LEASE.as_secs(),
            Interface::DOM0,
            to = first().address()
        );
        dom0.write("/run/udhcpd.conf", &configuration)?;
        let server = ShortLeases(dom0);
        dom0.run("touch /run/udhcpd.leases; stop-dnsmasq")?;
        Ok(server)
    }

    fn start(&self) -> Result<String> {
        self.0.run("udhcpd /run/udhcpd.conf")
    }

    /// The port is then free for the next server.
    fn stop(&self) -> Result<String> {
        self.0.run(
            "for pid in $(pidof udhcpd); do kill $pid; \
             while kill -0 $pid 2>/dev/null; do sleep 0.1; done; done",
        )
    }
}

impl Drop for ShortLeases<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop().and_then(|_| self.0.run("start-dnsmasq")) {
            println!("dnsmasq does not run: {error:#}");
        }
    }
}

fn jumbo_frames_are_used_if_the_toolstack_allows_them(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let settings = format!("vif = [\"{},mtu=9000\"]", first().vif());
    let guest = over(first(), fixture, &settings)?;
    guest.domain.wait_for("MTU 9000", PATIENCE)?;
    guest.domain.wait_for("the address is", PATIENCE)?;
    dom0.run("ip link set xenbr0 mtu 9000")?;
    // The first answer may make the guest request dom0's Ethernet address.
    let ping = |words: &str| dom0.run(&format!("ping -q {words} {}", first().address()));
    let _ = ping("-c 2");
    let said = ping("-c 20 -i 0.01 -s 8000")?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    let got = sha256(&guest.get("/bytes/3000000")?.1);
    ensure!(got == all_of_it(3_000_000), "{got}");
    let body = pattern(3_000_000);
    ensure!(guest.sum(&body)? == sha256(&body));
    Ok(())
}

fn an_interface_may_be_attached_late_and_replaced(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let ports = fixture.port_at(|port| SocketAddrV4::new(first().address(), port))?;
    let words = format!("app=http port={} stack=netfront", ports.inner);
    let config = format!("{HTTP}\ncmdline = \"{words}\"\n");
    let domain = Device::None.create(dom0, "http", &config)?;
    let guest = Service { domain, port: ports.host, inner_port: ports.inner };
    let name = guest.domain.name();
    let said = guest.domain.wait_for("no network interface", PATIENCE)?;
    ensure!(said.contains("vif=") && said.contains("xl network-attach"), "{said}");
    for _ in 0..rounds()? {
        dom0.run(&format!("xl network-attach {name} {}", first().vif()))?;
        wait_until("the guest serves", PATIENCE, || Ok(guest.is_served()))?;
        ensure!(guest.get("/bytes/100000")?.1 == pattern(100_000));
        dom0.run(&format!("xl network-detach {name} 0"))?;
        let device = format!("xenstore-exists /local/domain/$(xl domid {name})/device/vif/0");
        wait_until("the device is gone", PATIENCE, || Ok(dom0.exec(&device)?.status != 0))?;
    }
    Ok(())
}

fn connections_survive_a_lost_link(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::start_over(Device::Netfront(first()), fixture, ECHO, "echo", "")?;
    guest.domain.wait_for("the address is", PATIENCE)?;
    let mut stream = guest.connect()?;
    let mut bytes = [0; 6];
    echo(&mut stream)?;
    let vif = name_of_vif(&guest.domain)?;
    dom0.run(&format!("ip link set {vif} down"))?;
    stream.write_all(b"meanwh")?;
    thread::sleep(Duration::from_secs(2));
    dom0.run(&format!("ip link set {vif} up"))?;
    stream.read_exact(&mut bytes)?;
    ensure!(&bytes == b"meanwh");
    // A new interface with the same address continues the connection.
    let name = guest.domain.name();
    dom0.run(&format!("xl network-detach {name} 0"))?;
    stream.write_all(b"behind")?;
    dom0.run(&format!("xl network-attach {name} {}", first().vif()))?;
    stream.read_exact(&mut bytes)?;
    ensure!(&bytes == b"behind");
    exchange(guest.port, &pattern(1_000_000))
}

fn a_guest_with_an_interface_is_saved_and_restored_under_load(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = http(fixture)?;
    let name = guest.domain.name().to_owned();
    for _ in 0..rounds()? {
        let load = Load::of(&guest)?;
        load.runs(&guest)?;
        dom0.run(&format!("xl save {name} /root/saved"))?;
        dom0.run("xl restore /root/saved && rm /root/saved")?;
        wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
        drop(load);
        let got = sha256(&guest.get("/bytes/1000000")?.1);
        ensure!(got == all_of_it(1_000_000), "{got}");
    }
    dom0.run(&format!("xl shutdown -w {name}"))?;
    guest.domain.wait_for_end(PATIENCE)
}

fn both_stacks_serve_at_once(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let ports = fixture.port()?;
    let port = ports.inner;
    let settings =
        format!("cmdline = \"app=http port={port} stack=both\"\nvif = [\"{}\"]", first().vif());
    let config = format!("{HTTP}\n{settings}\n");
    let domain = Domain::create(dom0, "both", &config)?;
    domain.wait_for("the address is", PATIENCE)?;
    let calls = Service { domain, port: ports.host, inner_port: port };
    wait_until("dom0's sockets serve", PATIENCE, || Ok(calls.is_served()))?;
    ensure!(calls.get("/bytes/1000003")?.1 == pattern(1_000_003));
    let url = format!("http://{}:{port}/bytes/1000003", first().address());
    let digest = dom0.run(&format!("wget -q -O - {url} | sha256sum"))?;
    ensure!(digest.starts_with(&all_of_it(1_000_003)), "{digest}");
    Ok(())
}

fn frames_can_be_captured_live(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let ports = fixture.port()?;
    let words = format!("app=http port=80 stack=netfront trace=pcap:{}", ports.inner);
    let vif = first().vif();
    let config = format!("{HTTP}\ncmdline = \"{words}\"\nvif = [\"{vif}\"]\n");
    let guest = Domain::create(dom0, "traced", &config)?;
    guest.wait_for("serving frames", PATIENCE)?;
    guest.wait_for("the address is", PATIENCE)?;
    // The second reader gets a new capture file.
    for path in ["/healthz", "/bytes/50000"] {
        let mut stream = TcpStream::connect(("127.0.0.1", ports.host))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut header = [0; 24];
        stream.read_exact(&mut header)?;
        ensure!(header[..4] == 0xa1b2_c3d4_u32.to_le_bytes(), "no capture: {header:?}");
        dom0.run(&format!("wget -q -O /dev/null http://{}{path}", first().address()))?;
        let asked = format!("GET {path} ");
        let (mut question, mut answer) = (false, false);
        while !(question && answer) {
            let frame = next_frame(&mut stream)?;
            let contains =
                |text: &str| frame.windows(text.len()).any(|some| some == text.as_bytes());
            question |= contains(&asked);
            answer |= question && contains("HTTP/1.1 200");
        }
    }
    Ok(())
}

fn destroying_a_guest_with_an_interface_prints_no_error(fixture: &Fixture) -> Result<()> {
    let guest = http(fixture)?;
    let output = fixture.lab()?.exec(&format!("xl destroy {}", guest.domain.name()))?;
    ensure!(output.status == 0 && output.stderr.is_empty(), "{output:?}");
    Ok(())
}

/// The next frame of a capture.
fn next_frame(capture: &mut impl Read) -> Result<Vec<u8>> {
    let mut header = [0; 16];
    capture.read_exact(&mut header)?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    ensure!(word(8) == word(12) && word(8) <= 65535, "a record's header is {header:?}");
    let mut frame = vec![0; word(8) as usize];
    capture.read_exact(&mut frame)?;
    Ok(frame)
}
