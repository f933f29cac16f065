//! A guest whose backend sends invalid data: it logs the error, closes the socket or the device,
//! and survives.

use crate::fixture::{Fixture, build, cases, wait_until};
use crate::service::{PATIENCE, Service, pattern, sha256};
use anyhow::{Context, Result, ensure};
use lab::Tree;

cases![a_guest_survives_and_logs_every_lie_of_its_backend];

/// The lies, the mildest first, each with the message that the guest must log. The message is empty
/// if only the app gets an error.
const LIES: [(&str, &str); 22] = [
    ("wrong-id", "which waits for no answer"),
    ("wrong-command", "the answer is ignored"),
    ("wrong-socket", "the answer is ignored"),
    ("twice", "which waits for no answer"),
    ("odd-errors", ""),
    ("in-too-far", "the backend's ring is malformed"),
    ("in-taken-back", "the backend's ring is malformed"),
    ("out-too-far", "the backend's ring is malformed"),
    ("in-flickers", "the backend's ring is malformed"),
    ("indexes-of-garbage", "the backend's ring is malformed"),
    ("empty-accepts", "accept failed"),
    ("keeps-pages", ""),
    ("silence", ""),
    ("storm", ""),
    ("too-many-answers", "the backend's command ring: protocol violation"),
    ("answers-taken-back", "the backend's command ring: protocol violation"),
    ("ring-of-garbage", "the backend's command ring: protocol violation"),
    ("connected-at-once", "the backend is gone"),
    ("no-state", "the backend is gone"),
    ("no-version", "`versions` is `2,3`"),
    ("no-order", "`max-page-order` is `many`"),
    ("no-feature", "`feature-names` is `perhaps`"),
];

fn a_guest_survives_and_logs_every_lie_of_its_backend(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    build("liar")?;
    lab.push(&Tree::here().target().join("host/examples/liar"), "/root/liar")?;
    let guest = Service::http(fixture)?;
    let id = guest.domain.id()?.unwrap_or_default();
    lab.run(
        "pid=$(cat /run/xensockd.pid); kill $pid; \
         while kill -0 $pid 2>/dev/null; do sleep 0.1; done",
    )?;
    let outcome = tell_all_lies(&guest, lab, id);
    // The other tests need xensockd, even if this one fails.
    lab.run("start-xensockd")?;
    outcome?;
    let served = || Ok(guest.get("/healthz").is_ok_and(|(status, _)| status.contains("200")));
    wait_until("the guest serves with an honest backend", PATIENCE, served)?;
    ensure!(guest.domain.id()? == Some(id), "the guest was replaced");
    let body = guest.get("/bytes/1000000")?.1;
    ensure!(sha256(&body) == sha256(&pattern(1_000_000)), "the body has wrong bytes");
    let numbers = guest.metrics()?;
    ensure!(numbers["quarantined_pages"] == 0, "pages are left in quarantine: {numbers:?}");
    ensure!(!guest.domain.console()?.contains("panic"));
    Ok(())
}

fn tell_all_lies(guest: &Service, lab: &lab::Dom0, id: u32) -> Result<()> {
    for (lie, message) in LIES {
        let before = guest.domain.console()?.len();
        let output = lab.exec(&format!("/root/liar {id} {lie}"))?;
        let news = || -> Result<String> {
            Ok(guest.domain.console()?.get(before..).unwrap_or_default().to_owned())
        };
        ensure!(output.status == 0, "{lie}: {output:?}; the guest logged: {}", news()?);
        // The guest may log it after the liar has seen its reaction.
        let logged = wait_until(message, PATIENCE, || Ok(news()?.contains(message)));
        logged.with_context(|| format!("{lie}: the guest logged: {:?}", news()))?;
    }
    Ok(())
}
