//! Headless Chromium, driven by its DevTools protocol (chromedevtools.github.io/devtools-protocol).

use crate::service::PATIENCE;
use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use lab::{Kept, owned};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use tempfile::TempDir;

/// Moves the pipes to the file descriptors that Chromium expects: 3 for commands, 4 for answers.
/// `$0` is its log.
const PIPES: &str = r#"exec chromium-headless-shell "$@" 3<&0 4>&1 </dev/null >"$0" 2>&1"#;

/// A browser with one page. It ends when this value is dropped or this process ends.
pub struct Browser {
    process: Kept,
    commands: PipeWriter,
    messages: Receiver<Value>,
    /// The page's session, once it exists.
    session: Option<String>,
    calls: Cell<u64>,
    /// What the page has reported so far.
    events: RefCell<Vec<Value>>,
    /// Its profile and its log.
    _folder: TempDir,
}

impl Browser {
    /// Starts Chromium with an empty page.
    pub fn start() -> Result<Browser> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let mut command = owned(&[
            "sh",
            "-c",
            PIPES,
            log.to_str().context("the folder's name is not UTF-8")?,
            "--remote-debugging-pipe",
            &profile,
            // Chromium refuses to run its sandbox as root; the only page is the guest's.
            "--no-sandbox",
            // Containers have little there.
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--hide-scrollbars",
            "about:blank",
        ]);
        let (input, commands) = std::io::pipe()?;
        let (answers, output) = std::io::pipe()?;
        command.stdin(Stdio::from(input)).stdout(Stdio::from(output));
        let process = Kept::spawn(command)?;
        let (sender, messages) = channel();
        thread::spawn(move || forward(answers, &sender));
        let mut browser = Browser {
            process,
            commands,
            messages,
            session: None,
            calls: Cell::new(0),
            events: RefCell::default(),
            _folder: folder,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let page = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", page)?;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Calls a method and waits for its result.
    fn call(&self, method: &str, params: Value) -> Result<Value> {
        let id = self.calls.get() + 1;
        self.calls.set(id);
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        (&self.commands).write_all(format!("{message}\0").as_bytes())?;
        loop {
            let message = self.messages.recv_timeout(PATIENCE);
            let mut message = message.with_context(|| {
                format!("{method}: no answer; Chromium's status: {:?}", self.process.ended())
            })?;
            if message["id"] != id {
                self.events.borrow_mut().push(message);
            } else if let Some(error) = message.get("error") {
                bail!("{method}: {error}");
            } else {
                return Ok(message["result"].take());
            }
        }
    }

    /// Shows the page at `url`, and waits until it is complete.
    pub fn open(&self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        if let Some(error) = answer.get("errorText") {
            bail!("{url}: {error}");
        }
        self.wait_for("document.readyState == 'complete' && location.protocol == 'http:'")
    }

    /// Sets the size of the window, and dark or light colours.
    pub fn look(&self, width: u32, height: u32, colours: &str) -> Result<()> {
        let phone = width < 600;
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone,
        });
        self.call("Emulation.setDeviceMetricsOverride", size)?;
        let feature = json!({ "name": "prefers-color-scheme", "value": colours });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }))?;
        Ok(())
    }

    /// Turns JavaScript off for pages opened later.
    pub fn disable_scripts(&self) -> Result<()> {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }))?;
        Ok(())
    }

    /// The value of an expression of JavaScript.
    pub fn evaluate(&self, expression: &str) -> Result<Value> {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", params)?;
        if let Some(error) = answer.get("exceptionDetails") {
            bail!("{expression}: {error}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true.
    pub fn wait_for(&self, expression: &str) -> Result<()> {
        crate::fixture::wait_until(expression, PATIENCE, || Ok(self.evaluate(expression)? == true))
    }

    /// Clicks the middle of the element with this id.
    pub fn click(&self, id: &str) -> Result<()> {
        let place = self.evaluate(&format!(
            "(({{ left, top, width, height }}) => [left + width / 2, top + height / 2])\
             (document.getElementById('{id}').getBoundingClientRect())"
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Presses the space bar.
    pub fn press_space(&self) -> Result<()> {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": " ", "code": "Space", "text": " ",
                "windowsVirtualKeyCode": 32,
            });
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Writes a picture of the whole page.
    pub fn picture(&self, file: &Path) -> Result<()> {
        let answer =
            self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }))?;
        let bytes = BASE64_STANDARD.decode(answer["data"].as_str().context("no picture")?)?;
        std::fs::write(file, bytes).with_context(|| file.display().to_string())
    }

    /// The URLs that the page has requested so far.
    pub fn requests(&self) -> Vec<String> {
        let events = self.events.borrow();
        let sent = events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let url = |event: &Value| event["params"]["request"]["url"].as_str().map(str::to_owned);
        sent.filter_map(url).collect()
    }

    /// What the console has shown so far: messages, exceptions, breaches of the page's policy.
    pub fn console(&self) -> Vec<Value> {
        let kinds = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"];
        let events = self.events.borrow();
        let shown = events.iter().filter(|event| kinds.iter().any(|kind| event["method"] == *kind));
        shown.cloned().collect()
    }
}

/// Forwards Chromium's messages, each of which ends with a zero byte, until it ends.
fn forward(answers: PipeReader, sender: &Sender<Value>) {
    for message in BufReader::new(answers).split(0) {
        let message = message.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(message) = message else { return };
        if sender.send(message).is_err() {
            return;
        }
    }
}
