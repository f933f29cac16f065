//! Watches of nodes.

use super::connection::{Connection, Undo};
use super::wire::check_path;
use crate::Errno;
use crate::abi::xs_wire::{XS_UNWATCH, XS_WATCH};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::future::poll_fn;

/// A registered watch. Dropping it unregisters it.
///
/// A path that fires again before it was fetched is reported once. If very many different paths
/// fire, the watched path is reported in their place: then anything below it may have changed.
#[derive(Debug)]
pub struct Watch {
    connection: Rc<Connection>,
    path: String,
    token: u32,
    registered: bool,
}

impl Watch {
    pub(super) async fn register(connection: Rc<Connection>, path: &str) -> Result<Watch, Errno> {
        check_path(path)?;
        // The queue is created first, as an event may precede the reply.
        let token = connection.open_watch(path);
        let path = path.to_string();
        let mut watch = Watch { connection, path, token, registered: false };
        let (path, digits) = (watch.path.clone(), token.to_string());
        let parts: [&[u8]; 4] = [watch.path.as_bytes(), &[0], digits.as_bytes(), &[0]];
        let undo = Undo::Unwatch { path, token };
        watch.connection.request(XS_WATCH, 0, undo, &parts)?.await?;
        watch.registered = true;
        Ok(watch)
    }

    /// Waits for a change and returns the path of the changed node: the watched one or one below
    /// it, absolute or relative like the watched path. Waits for ever if the connection has failed.
    pub async fn next(&mut self) -> String {
        poll_fn(|cx| self.connection.poll_watch(self.token, cx)).await
    }

    /// The watched path.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.close_watch(self.token);
        if self.registered {
            self.connection.send_watch(XS_UNWATCH, &self.path, self.token);
        }
    }
}
