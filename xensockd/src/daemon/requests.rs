//! What the daemon answers: to the control socket, to Prometheus, and between its threads.

use super::{Common, End, lock};
use crate::control::{Reply, Request, Status};
use crate::guests::Guests;
use crate::handover;
use crate::metrics::{self, Numbers};
use crate::threads::Message;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use xen::xenstore::Store;
use xen::{DomId, Flag};

/// Carries out a message from another thread.
pub(super) async fn receive_message(message: Message, guests: &Guests, store: &Store) {
    match message {
        Message::Rules(policy) => guests.apply(store, policy).await,
        Message::Status(to) => {
            let _ = to.send(guests.status());
        }
        Message::Numbers(to) => {
            let _ = to.send(guests.numbers());
        }
        Message::Close(guest, socket, to) => {
            if let Ok(guest) = guests.get(guest) {
                let _ = to.send(guest.close(socket));
            }
        }
    }
}

/// Answers a request on the control socket. `asked` is raised if it is to stop.
pub(super) async fn answer(
    common: &Common<'_>,
    request: Request,
    client: &OwnedFd,
    asked: &Flag,
) -> Reply {
    let done = match request {
        Request::Status => return Reply::Status(status(common).await),
        Request::Metrics => return Reply::Metrics(numbers(common).await),
        Request::Reload => reload_rules(common),
        Request::LogLevel(level) => match level.parse() {
            Ok(level) => {
                log::set_max_level(level);
                Ok(format!("the log level is {level}"))
            }
            Err(_) => Err(format!("`{level}` is not a log level")),
        },
        Request::Restart if common.systemd.is_some() => {
            *lock(&common.end) = End::Restart;
            asked.raise();
            Ok("the daemon restarts".into())
        }
        Request::Restart => Err("nobody would start it again: start another one, which replaces \
                                 it, by `xensockd --replace` with the options of this one"
            .into()),
        Request::HandOver => match handover::heir(client) {
            Ok(heir) => {
                *lock(&common.end) = End::HandOver(heir);
                asked.raise();
                // The reply is what the daemon leaves.
                return pending().await;
            }
            Err(reason) => Err(reason),
        },
        Request::Close { guest, socket } => {
            let domain = status(common).await.guest(&guest).map(|guest| DomId(guest.domain));
            let closed = match domain {
                Some(domain) => {
                    let ask = |to| Message::Close(domain, socket, to);
                    common.mailboxes.ask(ask).await.contains(&true)
                }
                None => false,
            };
            match (domain, closed) {
                (None, _) => Err(format!("no guest {guest} has a device for sockets")),
                (_, false) => Err(format!("{guest} has no socket {socket}")),
                (_, true) => Ok(format!("socket {socket} of {guest} has ended")),
            }
        }
    };
    done.map_or_else(Reply::Failed, Reply::Done)
}

async fn status(common: &Common<'_>) -> Status {
    let all = common.mailboxes.ask(Message::Status).await;
    let mut guests: Vec<_> = all.into_iter().flatten().collect();
    guests.sort_by_key(|guest| guest.domain);
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        rules: common.policy().to_string(),
        mappings: common.counts.xen.mappings.get(),
        ports: common.counts.xen.ports.get(),
        guests,
    }
}

/// The numbers for Prometheus.
pub(super) async fn numbers(common: &Common<'_>) -> String {
    let all = common.mailboxes.ask(Message::Numbers).await;
    let mut guests: Vec<_> = all.into_iter().flatten().collect();
    guests.sort_by_key(|guest| guest.domain);
    let Common { counts, shared, files, threads, .. } = common;
    let numbers = Numbers {
        threads: *threads,
        devices: counts.guests.get(),
        mappings: counts.xen.mappings.get(),
        event_channels: counts.xen.ports.get(),
        kept: shared.listeners.kept(),
        files: files.count(),
    };
    metrics::text(&numbers, &guests)
}

/// Reads the rules again. If there is a mistake, the former ones stay. The result is a line for the
/// user.
pub(super) fn reload_rules(common: &Common<'_>) -> Result<String, String> {
    match common.policy().read_again() {
        Ok(policy) => {
            let said = format!("reloaded: {policy}");
            log::info!("{said}");
            let policy = Arc::new(policy);
            common.shared.listeners.reserve(policy.metrics());
            *lock(&common.policy) = policy.clone();
            common.mailboxes.send(|| Message::Rules(policy.clone()));
            Ok(said)
        }
        Err(reason) => {
            let reason = format!("{reason}; the former rules stay");
            log::error!("{reason}");
            Err(reason)
        }
    }
}
