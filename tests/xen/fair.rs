//! Guests that share the daemon: what one gets while another storms (`kernel/examples/storm.rs`),
//! and what each of four equal ones gets.

/// The cases are about what an operator is promised.
pub mod operators {
    use crate::fixture::{Fixture, cases, program};
    use crate::images::image;
    use crate::service::{HTTP, PATIENCE, median};
    use anyhow::{Context, Result, ensure};
    use lab::{Dom0, Domain};
    use std::thread;
    use std::time::Duration;

    cases![a_guest_keeps_its_share_beside_a_storm, four_equal_guests_get_a_quarter_each,];

    /// The ways of the hostile guest.
    const STORMS: [&str; 8] =
        ["events", "commands", "garbage", "connections", "references", "states", "nodes", "ports"];

    /// What another guest keeps: this part of its rate, and at most so many times its round trip.
    const RATE: f64 = 0.45;
    const ROUND_TRIP: f64 = 3.0;

    /// The MiB and the round trips of a measurement.
    const MB: u32 = 16;
    const COUNT: u32 = 200;

    /// The most turns of measuring a storm. The machine is noisy: as long as the median of the last
    /// turns is too bad, there is another one.
    const TURNS: usize = 30;
    const LAST: usize = 9;

    /// How long four guests work.
    const TOGETHER: Duration = Duration::from_secs(8);

    /// A guest whose sockets are measured.
    struct Server<'l> {
        dom0: &'l Dom0,
        _domain: Domain,
        /// The first of its four ports.
        port: u16,
    }

    // dom0 stays on the first processor of the lab. The server is there, too, so that a hostile
    // guest, on the other one, takes none of their time: how guests share processors is Xen's
    // affair.
    const WITH_DOM0: &str = "cpus = \"0\"\n";
    const APART: &str = "cpus = \"1\"\n";

    /// What one gets.
    #[derive(Clone, Copy, Debug)]
    struct Served {
        mib_per_s: f64,
        round_trip_us: f64,
    }

    impl<'l> Server<'l> {
        fn start(fixture: &'l Fixture, mb: u32, settings: &str) -> Result<Self> {
            let dom0 = fixture.lab()?;
            dom0.push(&program("client")?, "/root/client")?;
            let port = fixture.port()?.inner;
            for _ in 1..4 {
                fixture.port()?;
            }
            let line = format!("cmdline = \"app=bench port={port} mb={mb} idle-timeout=0\"\n");
            let domain = Domain::create(dom0, "server", &format!("{HTTP}\n{line}{settings}"))?;
            domain.wait_for("serving on ports", PATIENCE)?;
            Ok(Server { dom0, _domain: domain, port })
        }

        fn client(&self, mb: u32) -> String {
            format!("/root/client 127.0.0.1:{} mb={mb} count={COUNT} bare=yes out", self.port)
        }

        fn measure(&self) -> Result<Served> {
            let said = self.dom0.run(&format!("{} round-trip", self.client(MB)))?;
            let figure = |name: &str| {
                let line = said.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|value| value.trim().parse().ok()).with_context(|| said.clone())
            };
            let (mib_per_s, round_trip_us) = (figure("out_mib_per_s ")?, figure("round_trip_us ")?);
            Ok(Served { mib_per_s, round_trip_us })
        }

        /// The bytes that it has sent so far.
        fn sent(&self) -> Result<u64> {
            let page = format!("http://127.0.0.1:{}/metrics", self.port + 3);
            let page = self.dom0.run(&format!("wget -qO- {page}"))?;
            let line = page.lines().find_map(|line| {
                line.strip_prefix("xensock_socket_sent_bytes_total ")?.parse().ok()
            });
            line.context(page)
        }
    }

    fn a_guest_keeps_its_share_beside_a_storm(fixture: &Fixture) -> Result<()> {
        let dom0 = fixture.lab()?;
        let server = Server::start(fixture, MB, WITH_DOM0)?;
        server.measure()?;
        // A guest that does nothing keeps the hostile one's processor busy when that is paused, so
        // that the machine below Xen has as much to do.
        let config = image(fixture, "storm", "nothing")? + APART;
        let idle = Domain::create(dom0, "storm", &config)?;
        idle.wait_for("in a second", PATIENCE)?;
        let idle = idle.name();
        dom0.run(&format!("xl pause {idle}"))?;
        let mut poor = Vec::new();
        for storm in STORMS {
            let port = fixture.port()?.inner;
            let config = image(fixture, "storm", &format!("{storm} port={port}"))? + APART;
            let hostile = Domain::create(dom0, "storm", &config)?;
            hostile.wait_for("in a second", PATIENCE)?;
            let id = hostile.name();
            let (mut rates, mut delays) = (Vec::new(), Vec::new());
            for turn in 1..=TURNS {
                let beside = server.measure()?;
                dom0.run(&format!("xl pause {id} && xl unpause {idle}"))?;
                let alone = server.measure()?;
                dom0.run(&format!("xl pause {idle} && xl unpause {id}"))?;
                rates.push(beside.mib_per_s / alone.mib_per_s);
                delays.push(beside.round_trip_us / alone.round_trip_us);
                println!("{storm}: {beside:?}, alone {alone:?}");
                let first = turn.saturating_sub(LAST);
                let (rate, delay) = (median(&rates[first..]), median(&delays[first..]));
                let line = format!("{storm}: {rate:.2} of the rate, {delay:.2} round trips");
                if rate >= RATE && delay <= ROUND_TRIP {
                    println!("{line}");
                    break;
                }
                if turn == TURNS {
                    poor.push(line);
                }
            }
            let console = hostile.console()?;
            println!("{}", console.lines().last().unwrap_or_default());
        }
        ensure!(poor.is_empty(), "{poor:?}");
        Ok(())
    }

    fn four_equal_guests_get_a_quarter_each(fixture: &Fixture) -> Result<()> {
        const ENDLESS: u32 = 1_000_000;
        let dom0 = fixture.lab()?;
        let servers =
            (0..4).map(|_| Server::start(fixture, ENDLESS, APART)).collect::<Result<Vec<_>>>()?;
        let start = |server: &Server| {
            dom0.run(&format!("{} >/dev/null 2>&1 & echo $!", server.client(ENDLESS)))
        };
        let clients = servers.iter().map(start).collect::<Result<Vec<_>>>()?;
        let sent = || servers.iter().map(Server::sent).collect::<Result<Vec<_>>>();
        let shares = || -> Result<Vec<f64>> {
            let before = sent()?;
            thread::sleep(TOGETHER);
            let bytes = sent()?.into_iter().zip(before).map(|(now, before)| now - before);
            let bytes: Vec<_> = bytes.map(|bytes| bytes as f64).collect();
            let all: f64 = bytes.iter().sum();
            Ok(bytes.iter().map(|bytes| bytes / all).collect())
        };
        let shares = shares();
        dom0.run(&format!("kill {}", clients.join(" ")))?;
        let shares = shares?;
        println!("{shares:.2?}");
        ensure!(shares.iter().all(|share| (0.2..=0.3).contains(share)), "{shares:?}");
        Ok(())
    }
}
