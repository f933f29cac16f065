//! The page of the HTTP app, in a browser.

use crate::chromium::Browser;
use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{PATIENCE, Service};
use anyhow::{Result, ensure};
use lab::Tree;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

cases![
    the_page_measures_its_guest_from_start_to_stop,
    the_page_reports_that_its_guest_is_silent_back_or_gone,
    the_page_works_without_scripts,
];

/// The size of a window on a desk, in pixels.
const WINDOW: (u32, u32) = (1100, 900);
/// The size of a phone's screen, in pixels.
const PHONE: (u32, u32) = (360, 740);

/// The path of a picture, beside the logs.
fn picture(name: &str) -> PathBuf {
    Tree::here().target().join(format!("test-logs/page-{name}.png"))
}

fn the_page_measures_its_guest_from_start_to_stop(fixture: &Fixture) -> Result<()> {
    let guest = Service::http(fixture)?;
    let browser = Browser::start()?;
    browser.look(WINDOW.0, WINDOW.1, "light")?;
    browser.open(&guest.url("/"))?;
    let text = |id: &str| browser.evaluate(&format!("document.getElementById('{id}').textContent"));
    ensure!(text("run")? == "Start", "{}", text("run")?);
    let below = "document.querySelector('.cards').getBoundingClientRect().top";
    let place = browser.evaluate(below)?;
    let counters =
        ["app_requests_total", "app_sent_bytes_total", "app_received_bytes_total", "events_total"];
    let before = counters.iter().map(|id| text(id)).collect::<Result<Vec<_>>>()?;
    let requests = browser.requests().len();

    browser.click("run")?;
    ensure!(text("run")? == "Stop", "{}", text("run")?);
    for figure in ["down", "up", "trip"] {
        browser.wait_for(&format!("document.getElementById('{figure}').textContent > 0"))?;
        let line = format!("document.getElementById('{figure}-path')");
        // A chart has some pixels, not only a path.
        browser.wait_for(&format!("{line}.getBoundingClientRect().width > 5"))?;
    }
    for (id, before) in counters.iter().zip(before) {
        wait_until(id, PATIENCE, || Ok(text(id)? != before))?;
    }
    // The second turn of downloads makes a better picture.
    browser.wait_for("samples.down.at(-1)?.from > samples.up[0]?.from")?;
    ensure!(browser.evaluate(below)? == place, "the page has moved");
    browser.picture(&picture("light"))?;
    browser.look(PHONE.0, PHONE.1, "dark")?;
    browser.picture(&picture("dark"))?;
    let overhang = browser.evaluate("document.documentElement.scrollWidth - innerWidth")?;
    ensure!(overhang == 0, "the page is {overhang} pixels wider than a phone");

    // The button still has the focus.
    browser.press_space()?;
    ensure!(text("run")? == "Start" && text("note")? == "Stopped.", "{}", text("note")?);
    let sent = browser.requests();
    thread::sleep(Duration::from_secs(2));
    ensure!(text("note")? == "Stopped.", "{}", text("note")?);
    ensure!(browser.requests().len() == sent.len(), "requests after the stop");
    ensure!(sent.len() > requests + 3, "{sent:?}");
    let ours = guest.url("/");
    let foreign = sent.iter().find(|url| !url.starts_with(&ours) && *url != "data:,");
    ensure!(foreign.is_none(), "{foreign:?}");
    ensure!(browser.console().is_empty(), "{:?}", browser.console());
    Ok(())
}

fn the_page_reports_that_its_guest_is_silent_back_or_gone(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    let browser = Browser::start()?;
    browser.look(WINDOW.0, WINDOW.1, "light")?;
    browser.open(&guest.url("/"))?;
    browser.click("run")?;
    browser.wait_for("document.getElementById('trip').textContent > 0")?;
    let says = |text: &str| {
        browser.wait_for(&format!("document.getElementById('note').textContent.includes('{text}')"))
    };
    says("Measuring")?;
    dom0.run(&format!("xl pause {}", guest.domain.name()))?;
    says("The guest has been silent")?;
    guest.domain.unpause()?;
    says("Measuring")?;
    guest.domain.destroy();
    says("The guest does not answer")?;
    browser.picture(&picture("gone"))
}

fn the_page_works_without_scripts(fixture: &Fixture) -> Result<()> {
    let guest = Service::http(fixture)?;
    let browser = Browser::start()?;
    browser.look(WINDOW.0, WINDOW.1, "light")?;
    browser.disable_scripts()?;
    browser.open(&guest.url("/"))?;
    let text = browser.evaluate("document.body.innerText")?;
    let text = text.as_str().unwrap_or_default();
    for part in ["XenSock guest", "Uptime", "Heap in use", "Requests\n1\n", "/metrics", "/sum"] {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    for part in ["Start", "Round trip"] {
        ensure!(!text.contains(part), "{part:?} is in {text}");
    }
    ensure!(browser.console().is_empty(), "{:?}", browser.console());
    browser.picture(&picture("without-scripts"))
}
