//! xensockd in a driver domain: guests' sockets live there, and dom0 serves none of them.

pub mod operators {
    use crate::fixture::{Fixture, cases, wait_until};
    use crate::service::{ECHO, HTTP, Load, PATIENCE, Service, pattern};
    use crate::shortage::more_than_fit;
    use anyhow::{Context, Result, ensure};
    use lab::{Domain, DriverDomain, Interface, Tree};

    cases![
        a_guest_s_sockets_live_in_a_driver_domain_and_move_to_another_one,
        a_guest_of_a_driver_domain_has_its_own_rules_once_its_name_is_readable,
        without_event_channels_connections_wait,
    ];

    /// Rules without entries, which need no guest's name.
    const OPEN: &str = "[defaults]\nlisten = [\"1-65535\"]\nconnect = [\"any\"]\n";

    fn start(fixture: &Fixture, rules: &str) -> Result<DriverDomain> {
        start_with(fixture, rules, "")
    }

    fn start_with(fixture: &Fixture, rules: &str, settings: &str) -> Result<DriverDomain> {
        let (tree, interface) = (Tree::here(), Interface::numbered(1));
        let say = |text: &str| println!("lab: {text}");
        let driver = DriverDomain::start(fixture.lab()?, &tree, interface, settings, &[], &say)?;
        driver.serve(rules)?;
        Ok(driver)
    }

    /// The configuration of a guest whose sockets are there.
    fn config(driver: &DriverDomain, words: &str) -> String {
        sockets_in(driver, HTTP, words)
    }

    fn sockets_in(driver: &DriverDomain, config: &str, words: &str) -> String {
        let name = driver.domain().name();
        format!("{config}\ncmdline = \"{words}\"\npvcalls = [\"backend={name}\"]\n")
    }

    fn http(fixture: &Fixture, driver: &DriverDomain) -> Result<Service> {
        serve(fixture, driver, HTTP, "http")
    }

    fn serve(fixture: &Fixture, driver: &DriverDomain, config: &str, app: &str) -> Result<Service> {
        let ports = fixture.port_at(|port| driver.port(port))?;
        let config = sockets_in(driver, config, &format!("app={app} port={}", ports.inner));
        let domain = Domain::create(fixture.lab()?, "server", &config)?;
        domain.wait_for(&format!("serving on port {}", ports.inner), PATIENCE)?;
        Ok(Service { domain, port: ports.host, inner_port: ports.inner })
    }

    /// The output of a guest that fetches a page.
    fn fetch(fixture: &Fixture, driver: &DriverDomain, url: &str) -> Result<String> {
        let config = config(driver, &format!("app=fetch url={url}"));
        let guest = Domain::create(fixture.lab()?, "fetch", &config)?;
        guest.wait_for_end(PATIENCE)?;
        guest.console()
    }

    fn a_guest_s_sockets_live_in_a_driver_domain_and_move_to_another_one(
        fixture: &Fixture,
    ) -> Result<()> {
        let dom0 = fixture.lab()?;
        let driver = start(fixture, "")?;
        let guest = http(fixture, &driver)?;
        let name = guest.domain.name();
        ensure!(guest.curl(&[&guest.url("/bytes/3000017")])? == pattern(3_000_017), "other bytes");
        let listener = format!(":{} ", guest.inner_port);
        ensure!(driver.run("netstat -ltn")?.contains(&listener), "it listens elsewhere");
        ensure!(!dom0.run("netstat -ltn")?.contains(&listener), "dom0 listens");

        // The daemon has no more rights there.
        let status = driver.run("cat /proc/$(cat /run/xensockd.pid)/status")?;
        for line in ["CapPrm:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            ensure!(status.contains(line), "no {line:?} in {status}");
        }
        ensure!(!status.contains("Uid:\t0"), "{status}");
        driver.run("xensockd check-sandbox")?;

        // Its own addresses are those of its domain, and dom0 is another host.
        let there = format!("http://{}/", driver.port(guest.inner_port));
        let console = fetch(fixture, &driver, &there)?;
        ensure!(console.contains("EACCES"), "{console}");
        let log = driver.log()?;
        ensure!(log.contains("write connect = [\"remote\", \"10.0.2.131:"), "{log}");
        let other = Service::http(fixture)?;
        let here = format!("http://{}:{}/bytes", Interface::DOM0, other.inner_port);
        let console = fetch(fixture, &driver, &format!("{here}/1000003"))?;
        ensure!(console.contains("1000003"), "{console}");

        // xl finds what it waits for, when a guest has ended.
        let ended = Domain::create(dom0, "http", &config(&driver, "app=http port=7001"))?;
        ended.wait_for("serving on port", PATIENCE)?;
        let id = ended.id()?.context("the guest has ended")?;
        let output = dom0.exec(&format!("xl destroy {}", ended.name()))?;
        ensure!(output.status == 0 && output.stderr.is_empty(), "{output:?}");
        let own = driver.domain().id()?.context("the driver domain has ended")?;
        let left = format!("xenstore-exists /local/domain/{own}/backend/pvcalls/{id}/0");
        ensure!(dom0.exec(&left)?.status != 0, "the device's nodes are left");

        // The end of the driver domain ends sockets, and nothing else of its guests.
        let words = format!("app=fetch url={here}/10000000000");
        let fetching = Domain::create(dom0, "fetch", &config(&driver, &words))?;
        let id = fetching.id()?.context("the guest has ended")?;
        let begun = || {
            let status = driver.run(&format!("xensockctl guest {id}"));
            Ok(status.is_ok_and(|said| said.contains(&Interface::DOM0.to_string())))
        };
        wait_until("the fetch has begun", PATIENCE, begun)?;
        let _load = Load::of(&guest)?;
        dom0.run(&format!("xl destroy {}", driver.domain().name()))?;
        drop(driver);
        fetching.wait_for("network is down", PATIENCE)?;

        // A new one has another number, so the device is made again.
        let driver = start(fixture, OPEN)?;
        let again = driver.domain().name();
        dom0.run(&format!("detach-sockets --force {name}; attach-sockets {name} pvcalls {again}"))?;
        wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
        dom0.run(&format!("detach-sockets {name}; attach-sockets {name} pvcalls {again}"))?;
        wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
        let console = guest.domain.console()?;
        ensure!(!console.contains("panic"), "{console}");
        Ok(())
    }

    fn a_guest_of_a_driver_domain_has_its_own_rules_once_its_name_is_readable(
        fixture: &Fixture,
    ) -> Result<()> {
        let dom0 = fixture.lab()?;
        let driver = start(fixture, &format!("{OPEN}[guest.\"fetch-*\"]\nconnect = []\n"))?;
        let url = "http://10.0.2.131:1/";
        // The entry could forbid what the defaults allow.
        let console = fetch(fixture, &driver, url)?;
        ensure!(console.contains("EACCES"), "{console}");
        let log = driver.log()?;
        ensure!(log.contains("its name cannot be read, so no entry is known"), "{log}");
        let remedy = log.lines().find_map(|line| line.split_once("run in domain 0: "));
        let remedy = remedy.with_context(|| format!("no remedy in {log}"))?.1;
        ensure!(remedy.contains("xenstore-chmod /local/domain/"), "{remedy}");

        let namer = dom0.run("name-guests >/tmp/name-guests.log 2>&1 & echo $!")?;
        // The brackets keep this command line from finding itself.
        let namers = || dom0.run("ps -o args | grep -c '/[n]ame-guests$' || true");
        wait_until("name-guests runs", PATIENCE, || Ok(namers()? == "1"))?;
        let named = || -> Result<()> {
            let console = fetch(fixture, &driver, url)?;
            ensure!(console.contains("EACCES"), "{console}");
            let log = driver.log()?;
            ensure!(log.contains("(fetch-"), "{log}");
            ensure!(log.contains("its rules are those of [guest.\"fetch-*\"]"), "{log}");
            let guest = http(fixture, &driver)?;
            ensure!(guest.get("/healthz")?.0.contains("200"));
            Ok(())
        };
        let result = named();
        dom0.run(&format!("kill {namer}; cat /tmp/name-guests.log"))?;
        result?;
        wait_until("name-guests has ended", PATIENCE, || Ok(namers()? == "0"))
    }

    fn without_event_channels_connections_wait(fixture: &Fixture) -> Result<()> {
        // Linux itself has some.
        let driver = start_with(fixture, OPEN, "max_event_channels = 63")?;
        let guest = serve(fixture, &driver, ECHO, "echo max-connections=200 idle-timeout=0")?;
        // Without entries the rules need no guest's name, so the daemon does not know it.
        let name = format!("domain {}", guest.domain.id()?.context("the guest has ended")?);
        let line = "an event channel is refused: this domain has no more network buffers";
        more_than_fit(&guest, &name, || driver.log(), 80, line)
    }
}
