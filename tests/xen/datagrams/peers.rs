//! Clients and servers of other projects.

use crate::fixture::{Fixture, cases, wait_until};
use crate::images::image;
use crate::service::{Device, ECHO, PATIENCE};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain, Interface, Tree, install_peers};
use std::net::{Ipv4Addr, Ipv6Addr};

cases![
    nc_gets_its_datagrams_back,
    dig_and_nslookup_ask_a_guest,
    a_guest_sets_its_clock_by_chrony,
    avahi_finds_a_guest_that_announces_itself,
    iperf3_measures_datagrams_to_a_guest,
    datagrams_continue_after_the_backend_restarts,
    a_backend_without_datagrams_is_reported_and_streams_continue,
];

/// The stacks.
fn all() -> [Device; 3] {
    [Device::Netfront(Interface::FIRST), Device::PvCalls, Device::XenSock]
}

/// The image with services of datagrams.
pub fn services(fixture: &Fixture, device: Device, words: &str, settings: &str) -> Result<Domain> {
    let config = image(fixture, "services", &format!("{words} {}", device.word()))?;
    device.create(fixture.lab()?, "services", &format!("{config}\n{settings}\n"))
}

/// A port for a guest, and the words that address it: those of nc.
fn place(fixture: &Fixture, device: Device) -> Result<(u16, String)> {
    let port = fixture.port()?.inner;
    let address = match device {
        Device::Netfront(interface) => interface.address(),
        _ => Ipv4Addr::LOCALHOST,
    };
    Ok((port, format!("{address} {port}")))
}

/// Whether a datagram comes back.
fn echoes(dom0: &Dom0, place: &str) -> Result<bool> {
    // Until one datagram has come, or nothing for some seconds.
    let said = dom0.exec(&format!("echo a datagram | nc.openbsd -u -W 1 -w 5 {place}"))?;
    Ok(said.text() == "a datagram")
}

/// The address of the echo app's own stack. dom0's network has the others of fd00::/64.
const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x130);

/// The echo app.
fn start_echo(fixture: &Fixture, device: Device) -> Result<(Domain, String)> {
    let (port, place) = place(fixture, device)?;
    let ip6 = if let Device::Netfront(_) = device { format!("ip6={IPV6}/64") } else { "".into() };
    let words = format!("cmdline = \"app=echo port={port} {} {ip6}\"", device.word());
    let domain = device.create(fixture.lab()?, "echo", &format!("{ECHO}\n{words}\n"))?;
    domain.wait_for("serving on port", PATIENCE)?;
    Ok((domain, place))
}

/// Whether a line comes back on a stream.
fn echoes_streams(dom0: &Dom0, place: &str) -> Result<bool> {
    let said = dom0.exec(&format!("echo a line | nc.openbsd -N -w 20 {place}"))?;
    Ok(said.text() == "a line")
}

fn nc_gets_its_datagrams_back(fixture: &Fixture) -> Result<()> {
    let dom0 = install(fixture)?;
    for device in all() {
        let (_guest, place) = start_echo(fixture, device)?;
        wait_until("a datagram comes back", PATIENCE, || echoes(dom0, &place))?;
        ensure!(echoes_streams(dom0, &place)?, "{device:?}");
        let (_, port) = place.split_once(' ').context("no port")?;
        let ip = if let Device::Netfront(_) = device { IPV6 } else { Ipv6Addr::LOCALHOST };
        let place = format!("{ip} {port}");
        wait_until("one of IPv6 comes back", PATIENCE, || echoes(dom0, &place))?;
    }
    Ok(())
}

fn dig_and_nslookup_ask_a_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = install(fixture)?;
    for device in all() {
        let (port, place) = place(fixture, device)?;
        let (address, _) = place.split_once(' ').context("no port")?;
        let names = "name=one.test:10.1.2.3 name=one.test:fd00::7 name=two.test:10.4.5.6";
        let guest = services(fixture, device, &format!("dns={port} {names}"), "")?;
        guest.wait_for("DNS: serving", PATIENCE)?;
        let dig = |words: &str| dom0.run(&format!("dig @{address} -p {port} {words}"));
        for (words, wanted) in [
            ("+short one.test A", "10.1.2.3"),
            ("+short one.test AAAA", "fd00::7"),
            ("+short TWO.test A", "10.4.5.6"),
            ("+short two.test AAAA", ""),
        ] {
            let said = dig(words)?;
            ensure!(said == wanted, "{device:?}: {words}: {said}");
        }
        let said = dig("three.test")?;
        ensure!(said.contains("NXDOMAIN") && said.contains("flags: qr aa"), "{said}");
        let said = dom0.run(&format!("/usr/bin/nslookup -port={port} two.test {address}"))?;
        ensure!(said.contains("10.4.5.6"), "{device:?}: {said}");
    }
    Ok(())
}

/// Programs in dom0 that end on drop.
pub struct Running<'a> {
    pub dom0: &'a Dom0,
    /// What ends them.
    pub end: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // The machine may have ended.
        let _ = self.dom0.exec(&self.end);
    }
}

fn install(fixture: &Fixture) -> Result<&Dom0> {
    let dom0 = fixture.lab()?;
    install_peers(dom0, &Tree::here(), &|text| println!("lab: {text}"))?;
    Ok(dom0)
}

fn a_guest_sets_its_clock_by_chrony(fixture: &Fixture) -> Result<()> {
    /// A guest's clock is a day ahead of dom0's.
    const DAY: i64 = 86_400;
    let dom0 = install(fixture)?;
    let port = fixture.port()?.inner;
    let config =
        format!("local stratum 5\nallow all\nport {port}\npidfile /run/chrony.pid\ncmdport 0\n");
    dom0.write("/run/chrony.conf", &config)?;
    dom0.run("chronyd -x -u root -f /run/chrony.conf >/tmp/chronyd 2>&1 || cat /tmp/chronyd >&2")?;
    let _chrony = Running { dom0, end: "kill $(cat /run/chrony.pid)".into() };
    for device in all() {
        let server = match device {
            Device::Netfront(_) => Interface::DOM0.to_string(),
            _ => "127.0.0.1".to_owned(),
        };
        let ahead = format!("rtc_timeoffset = {DAY}");
        let guest = services(fixture, device, &format!("ntp={server}:{port}"), &ahead)?;
        guest.wait_for_end(PATIENCE)?;
        let now: i64 = dom0.run("date +%s")?.parse()?;
        let console = guest.console()?;
        let line = console.lines().find_map(|line| line.split_once("NTP: the clock was "));
        let (_, line) = line.with_context(|| console.clone())?;
        let mut numbers = line.split(' ').filter_map(|word| word.parse::<i64>().ok());
        let (behind, set) = (numbers.next().context("no offset")?, numbers.next());
        ensure!((behind / 1_000_000 + DAY).abs() < 60, "{device:?}: {line}");
        ensure!(set.is_some_and(|set| (now - set).abs() < 60), "{device:?}: {line}, not {now}");
    }
    Ok(())
}

/// Waits until avahi, in dom0, knows a guest by this name.
fn is_found(dom0: &Dom0, guest: &Domain, name: &str, address: Ipv4Addr) -> Result<()> {
    guest.wait_for(&format!("{name}.local is"), PATIENCE)?;
    let wanted = format!(";{name};_http._tcp;local;{name}.local;{address};80;\"path=/\"");
    wait_until(&wanted, PATIENCE, || {
        let said = dom0.run("timeout 20 avahi-browse -rpt _http._tcp || true")?;
        Ok(said.lines().any(|line| line.starts_with("=;") && line.ends_with(&wanted)))
    })
}

fn avahi_finds_a_guest_that_announces_itself(fixture: &Fixture) -> Result<()> {
    let dom0 = install(fixture)?;
    dom0.run("start-avahi")?;
    let _avahi = Running { dom0, end: "kill $(cat /run/avahi-daemon/pid)".into() };
    let near = Interface::FIRST;
    let words = format!("mdns=bridge:{}", near.address());
    let guest = services(fixture, Device::Netfront(near), &words, "")?;
    is_found(dom0, &guest, "bridge", near.address())?;
    drop(guest);

    // In dom0, avahi has the port, and the guest shares it for the group.
    dom0.run("ip route add 224.0.0.251 dev xenbr0")?;
    let _route = Running { dom0, end: "ip route del 224.0.0.251 dev xenbr0".into() };
    [Device::PvCalls, Device::XenSock].into_iter().try_for_each(|device| {
        let words = format!("mdns=shared:{}", Interface::DOM0);
        let guest = services(fixture, device, &words, "")?;
        is_found(dom0, &guest, "shared", Interface::DOM0)
    })
}

fn iperf3_measures_datagrams_to_a_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = install(fixture)?;
    for device in all() {
        let (port, place) = place(fixture, device)?;
        let (address, _) = place.split_once(' ').context("no port")?;
        let guest = services(fixture, device, &format!("iperf={port}"), "")?;
        guest.wait_for("iperf3: serving", PATIENCE)?;
        // As few as every stack can receive: then none is lost.
        for length in [64, 1400] {
            let words = format!("-u -l {length} -b 500K -n {}", 100 * length);
            let json =
                dom0.run(&format!("timeout 120 iperf3 -c {address} -p {port} -J {words}"))?;
            let said: serde_json::Value = serde_json::from_str(&json)?;
            let sum = &said["end"]["sum"];
            let (packets, lost) = (sum["packets"].as_u64(), sum["lost_packets"].as_u64());
            ensure!(packets >= Some(100) && lost == Some(0), "{device:?}, {length}: {sum}");
        }
        // It speaks no other test, and lives on.
        let refused = dom0.exec(&format!("timeout 120 iperf3 -c {address} -p {port} -n 1K"))?;
        ensure!(refused.status != 0, "{device:?}: {}", refused.text());
        guest.wait_for("only -u of one stream", PATIENCE)?;
    }
    Ok(())
}

fn datagrams_continue_after_the_backend_restarts(fixture: &Fixture) -> Result<()> {
    let dom0 = install(fixture)?;
    for device in [Device::PvCalls, Device::XenSock] {
        let (_guest, place) = start_echo(fixture, device)?;
        wait_until("a datagram comes back", PATIENCE, || echoes(dom0, &place))?;
        dom0.run("start-xensockd")?;
        wait_until("datagrams come back again", PATIENCE, || echoes(dom0, &place))?;
    }
    Ok(())
}

fn a_backend_without_datagrams_is_reported_and_streams_continue(fixture: &Fixture) -> Result<()> {
    let dom0 = install(fixture)?;
    dom0.run("start-xensockd --plain")?;
    let outcomes = [Device::PvCalls, Device::XenSock].map(|device| {
        let (guest, place) = start_echo(fixture, device)?;
        guest.wait_for("no datagrams on port", PATIENCE)?;
        let console = guest.console()?;
        ensure!(console.contains("operation not supported"), "{console}");
        ensure!(echoes_streams(dom0, &place)?, "{device:?}");
        Ok(())
    });
    // The other tests need xensockd, even if this one fails.
    dom0.run("start-xensockd")?;
    outcomes.into_iter().collect()
}
